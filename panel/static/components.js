// Components of the hidden state: at the current step as bars, and over the whole episode.

import { showScale } from "./colour_legend.js";
import { divergingColours, divergingScale, sampleScale, themeColours } from "./colours.js";
import { baseLayout, loadPlotly, signedHeatmap } from "./plotting.js";
import { StepCursor } from "./step_cursor.js";
import { number, signedEnds, textScale } from "./words.js";

const MARGIN = { l: 46, r: 14, t: 8, b: 38 };
const SHADES = 65;
const QUANTITIES = ["activation", "gradient"];
const HEADROOM = 1.08;
const element = (id) => document.getElementById(id);

/**
 * Calls `onStep(step)` when the reader clicks into the map over time; reads and writes `components`
 * (what the map shows) in `view`.
 *
 * What it shows: `{steps, activation: {data, shape}, gradient: {data, shape} | null, names, length,
 * of}`, where row i of the arrays (n, K) is step `steps[i]` and `of` says what the gradient is of.
 */
export class Components {
  constructor(view, onStep) {
    this.view = view;
    this.bars = element("component-bars");
    this.box = element("component-map");
    this.map = Object.assign(document.createElement("div"), { className: "plot" });
    this.box.append(this.map);
    this.cursor = new StepCursor(this.box, this.map, onStep);
    this.quantity = element("component-quantity");
    this.quantity.addEventListener("change", ({ target }) => this.view.update({ components: target.value }));
    this.content = null;
    this.step = 0;
    new ResizeObserver(() => this.redraw()).observe(this.bars);
  }

  /** Shows the components of a rollout, or none. */
  async open(content) {
    this.content = content;
    this.cursor.setLength(0);
    element("components").hidden = !content;
    if (!content) return;
    const option = this.quantity.querySelector("[value=gradient]");
    option.disabled = !content.gradient;
    this.rowOf = new Map(Array.from(content.steps, (step, row) => [step, row]));
    this.height = largest(content.activation.data) * HEADROOM || 1;
    this.strength = content.gradient ? largest(content.gradient.data) || 1 : 1;
    await this.redraw();
  }

  /** Draws both plots anew, for instance in another theme or size. */
  async redraw() {
    if (!this.content || this.bars.clientWidth === 0) return;
    // Asked for beside a rollout without a gradient, it waits for one that has it.
    const asked = this.view.pick("components", QUANTITIES);
    this.quantity.value = this.content.gradient ? asked : QUANTITIES[0];
    const Plotly = await loadPlotly();
    const theme = themeColours();
    const config = { displayModeBar: false, responsive: false };
    await Plotly.react(this.bars, [this.#barTrace(theme)], this.#barLayout(theme), config);
    await Plotly.react(this.map, [this.#mapTrace()], this.#mapLayout(), config);
    this.cursor.setLength(this.content.length);
    this.#showLegends();
  }

  show(step) {
    this.step = step;
    this.cursor.show(step);
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.#showBars();
    });
  }

  /** Columns for a table: one row per step. */
  table() {
    const { steps, names, activation, gradient: slope, of } = this.content;
    const count = names.length;
    const column = ({ data }, component) => Array.from(steps, (_, row) => data[row * count + component]);
    const columns = { step: steps };
    // Names that are numbers would come before all others.
    names.forEach((name, component) => { columns[`activation ${name}`] = column(activation, component); });
    if (slope) {
      names.forEach((name, component) => { columns[`d ${of} / d ${name}`] = column(slope, component); });
    }
    return columns;
  }

  /** Values (K) of one of the arrays at the current step, NaN where there are none. */
  #at({ data, shape: [, count] }) {
    const row = this.rowOf.get(this.step);
    return row === undefined
      ? new Float32Array(count).fill(NaN)
      : data.subarray(row * count, (row + 1) * count);
  }

  async #showBars() {
    if (!this.content || !this.bars._fullLayout || this.bars.clientWidth === 0) return;
    const Plotly = await loadPlotly();
    const { y, marker, customdata } = this.#barTrace(themeColours());
    Plotly.restyle(this.bars, { y: [y], "marker.color": [marker.color], customdata: [customdata] });
  }

  #barTrace(theme) {
    const { names, activation, gradient: slope, of } = this.content;
    const slopes = slope ? this.#at(slope) : null;
    const shades = sampleScale(divergingScale(), SHADES).map((rgb) => `rgb(${rgb.join()})`);
    const shade = (value) => shades[Math.round((SHADES - 1) * (0.5 + value / this.strength / 2))];
    const colour = (component) =>
      slopes && Number.isFinite(slopes[component]) ? shade(slopes[component]) : theme.quiet;
    const customdata = names.map((_, component) => (slopes ? number(slopes[component], 4) : "–"));
    return {
      type: "bar", x: names, y: Array.from(this.#at(activation)), customdata,
      marker: { color: names.map((_, component) => colour(component)), line: { width: 1, color: theme.quiet } },
      hovertemplate: `%{x}: activation %{y:.3f}${slope ? `, d ${of} %{customdata}` : ""}<extra></extra>`,
    };
  }

  #barLayout(theme) {
    return {
      ...baseLayout(this.bars, MARGIN),
      xaxis: {
        fixedrange: true, showgrid: false, tickangle: 0, tickfont: { size: 10 * textScale() },
        title: { text: "component", standoff: 4 },
      },
      yaxis: {
        fixedrange: true, range: [-this.height, this.height], gridcolor: theme.grid,
        zerolinecolor: theme.quiet, nticks: 7,
      },
      bargap: 0.25,
    };
  }

  #mapTrace() {
    const { names, steps, activation, gradient: slope } = this.content;
    const { isGradient, limit, title } = this.#mapScale();
    const { data } = isGradient ? slope : activation;
    return signedHeatmap({
      x: Array.from(steps), y: names, limit, scaleTitle: title, xgap: 0, ygap: 0,
      z: names.map((_, component) =>
        Array.from(steps, (_, row) => data[row * names.length + component])),
      hovertemplate: "step %{x}, component %{y}: %{z:.3f}<extra></extra>",
    });
  }

  /** What the shades of the map over time stand for. */
  #mapScale() {
    const isGradient = this.quantity.value === "gradient";
    return {
      isGradient, limit: isGradient ? this.strength : this.height / HEADROOM || 1,
      title: isGradient ? `d ${this.content.of} / d component` : "activation, in the component's unit",
    };
  }

  #mapLayout() {
    return {
      ...baseLayout(this.box, MARGIN),
      xaxis: {
        fixedrange: true, range: [-0.5, this.content.length - 0.5], showgrid: false,
        title: { text: "step", standoff: 4 }, tickformat: "d",
      },
      yaxis: {
        fixedrange: true, autorange: "reversed", showgrid: false, tickfont: { size: 10 * textScale() },
        title: { text: "component", standoff: 4 },
      },
    };
  }

  /** What the bars' colours stand for; null where they have none. */
  legendOfBars() {
    const { gradient: slope, of } = this.content;
    return slope && {
      title: `d ${of} / d component`, numbers: signedEnds(this.strength, 3), colours: divergingColours(),
    };
  }

  #showLegends() {
    const colours = divergingColours();
    const legend = this.legendOfBars();
    element("component-legend").hidden = !legend;
    if (legend) showScale(element("component-legend"), legend);
    const { limit, title } = this.#mapScale();
    showScale(element("component-map-legend"), { title, numbers: signedEnds(limit, 2), colours });
  }
}

const largest = (values) => values.reduce((top, value) => Math.max(top, Math.abs(value) || 0), 0);
