// Value, reward and action over an episode, with a cursor in step with the player.

import { colourScale, themeColours } from "./colours.js";
import { plotly } from "./plotting.js";
import { actionSign, textScale } from "./words.js";

const MARGIN = { l: 78, r: 16, t: 18, b: 34 };
const ACTION_SHARE = 0.54;
const RARE = 0.03;
const PROBABILITY_LIGHT = ["#ffffff", "#d3e3f4", "#8fbbe4", "#3f86cb", "#0b4a94"];
const PROBABILITY_DARK = ["#171b21", "#1c3a5e", "#24619f", "#4d98dc", "#b9dcff"];

/** Calls `onStep(step)` when the reader clicks or drags on a trace. */
export class Traces {
  constructor(onStep) {
    this.onStep = onStep;
    this.box = document.getElementById("traces");
    this.plot = document.createElement("div");
    this.plot.className = "plot";
    this.cursor = document.createElement("div");
    this.cursor.className = "cursor";
    this.cursor.hidden = true;
    this.box.append(this.plot, this.cursor);
    this.sample = null;
    this.step = 0;
    this.#connectPointer();
    new ResizeObserver(() => this.#resize()).observe(this.box);
  }

  /** Draws the traces of a rollout. */
  async open(entry, steps) {
    this.sample = { entry, steps };
    await this.redraw();
  }

  /** Draws anew, for instance in another theme. */
  async redraw() {
    if (!this.sample) return;
    const Plotly = await plotly;
    const colours = themeColours();
    await Plotly.react(this.plot, this.#data(colours), this.#layout(colours), {
      displayModeBar: false,
      responsive: false,
    });
    this.show(this.step);
  }

  /** Moves the cursor; far quicker than drawing it with Plotly. */
  show(step) {
    this.step = step;
    const axis = this.plot._fullLayout?.xaxis;
    if (!axis) return;
    const { t, h } = this.plot._fullLayout._size;
    this.cursor.hidden = false;
    this.cursor.style.top = `${t}px`;
    this.cursor.style.height = `${h}px`;
    this.cursor.style.transform = `translateX(${axis._offset + axis.l2p(step)}px)`;
  }

  #data(colours) {
    const { entry, steps } = this.sample;
    const time = Array.from({ length: entry.length }, (_, t) => t);
    const names = entry.dataset.action_names;
    const rows = shownActions(steps, names.length);
    const rowOf = new Map(rows.map((action, row) => [action, row]));
    const paid = time.filter((t) => steps.reward.data[t] !== 0);
    const text = time.map((t) => names[steps.action.data[t]]);
    return [
      {
        type: "scatter", mode: entry.length < 40 ? "lines+markers" : "lines", name: "value",
        x: time, y: Array.from(steps.value.data), line: { color: colours.accent, width: 2 * textScale() },
        marker: { size: 4 }, hovertemplate: "step %{x}, value %{y:.3f}<extra></extra>",
      },
      {
        type: "bar", name: "reward", x: paid, y: paid.map((t) => steps.reward.data[t]), yaxis: "y2",
        marker: { color: colours.simulated, line: { width: 1, color: colours.simulated } },
        hovertemplate: "step %{x}, reward %{y:.2f}<extra></extra>",
      },
      {
        type: "heatmap", name: "probability", x: time, y: rows.map((_, row) => row),
        z: rows.map((action) => steps.probabilities.map((shares) => shares[action])), yaxis: "y3",
        colorscale: colourScale(isDark() ? PROBABILITY_DARK : PROBABILITY_LIGHT),
        zmin: 0, zmax: 1, showscale: false, customdata: rows.map((action) => time.map(() => names[action])),
        hovertemplate: "step %{x}, %{customdata}: %{z:.2f}<extra></extra>",
      },
      {
        type: "scatter", mode: "markers", name: "action taken", x: time,
        y: time.map((t) => rowOf.get(steps.action.data[t])), yaxis: "y3", text,
        marker: {
          symbol: "circle", color: colours.highlight, size: (entry.length > 120 ? 3 : 5) * textScale(),
          line: { color: colours.surface, width: entry.length > 120 ? 0 : 1 },
        },
        hovertemplate: "step %{x}, took %{text}<extra></extra>",
      },
    ];
  }

  #layout(colours) {
    const { entry, steps } = this.sample;
    const names = entry.dataset.action_names;
    const rows = shownActions(steps, names.length);
    const scale = textScale();
    const margin = scaled(MARGIN, scale);
    const room = Math.max(this.box.clientHeight - margin.t - margin.b, 100);
    const every = Math.ceil((rows.length * 11 * scale) / (room * ACTION_SHARE));
    const left = names.length - rows.length;
    const axis = {
      gridcolor: colours.grid, linecolor: colours.line, zerolinecolor: colours.line,
      fixedrange: true, automargin: false, ticks: "", zeroline: false,
    };
    return {
      width: this.box.clientWidth, height: this.box.clientHeight, margin,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: colours.font, size: 11 * scale, color: colours.quiet },
      hovermode: "closest", dragmode: false, bargap: 0.2,
      hoverlabel: { bgcolor: colours.surface, bordercolor: colours.line, font: { color: colours.text } },
      xaxis: {
        ...axis, range: [-0.5, entry.length - 0.5], anchor: "y3", showgrid: false,
        title: { text: "step", standoff: 4 }, tickformat: "d",
      },
      yaxis: { ...axis, domain: [0.8, 1], nticks: 4 },
      yaxis2: { ...axis, domain: [0.62, 0.72], nticks: 2, range: rewardRange(steps.reward.data) },
      yaxis3: {
        ...axis, domain: [0, ACTION_SHARE], range: [rows.length - 0.5, -0.5], showgrid: false,
        tickvals: rows.map((_, row) => row).filter((row) => row % every === 0),
        ticktext: rows.map((action) => actionLabel(names[action])).filter((_, row) => row % every === 0),
        tickfont: { size: 10 * scale },
      },
      annotations: [
        title("Value", 1, colours), title("Reward", 0.72, colours),
        title(`Action probability (shade), action taken (dot)${left ? `, ${left} unused not shown` : ""}`, ACTION_SHARE, colours),
      ],
    };
  }

  #connectPointer() {
    const jump = (event) => {
      const axis = this.plot._fullLayout?.xaxis;
      if (!axis || !this.sample) return;
      const x = event.clientX - this.plot.getBoundingClientRect().left - axis._offset;
      const step = Math.round(axis.p2l(x));
      this.onStep(Math.min(Math.max(step, 0), this.sample.entry.length - 1));
    };
    this.box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.box.setPointerCapture(event.pointerId);
      jump(event);
    });
    this.box.addEventListener("pointermove", (event) => {
      if (this.box.hasPointerCapture(event.pointerId)) jump(event);
    });
  }

  #resize() {
    if (this.sample && this.box.clientWidth > 0) this.redraw();
  }
}

export const scaled = (margin, scale) =>
  Object.fromEntries(Object.entries(margin).map(([side, width]) => [side, Math.round(width * scale)]));

const isDark = () => window.matchMedia("(prefers-color-scheme: dark)").matches;

const actionLabel = (name) => {
  const sign = actionSign(name);
  return sign === name || sign === "·" ? name.slice(0, 10) : `${name.slice(0, 10)} ${sign}`;
};

/** Actions that were taken, or were probable at some step; the others would be empty rows. */
function shownActions(steps, total) {
  const taken = new Set(steps.action.data);
  return Array.from({ length: total }, (_, action) => action).filter(
    (action) => taken.has(action) || steps.probabilities.some((shares) => shares[action] > RARE),
  );
}

function rewardRange(rewards) {
  const low = Math.min(0, ...rewards);
  const high = Math.max(0, ...rewards);
  const span = high - low;
  return span === 0 ? [-0.1, 1] : [low - 0.05 * span, high + 0.05 * span];
}

const title = (text, y, colours) => ({
  text, x: 0, xref: "paper", xanchor: "left", y, yref: "paper", yanchor: "bottom", showarrow: false,
  font: { size: 11 * textScale(), color: colours.text }, xshift: 0, yshift: 1,
});
