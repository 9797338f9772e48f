// Value, reward, end and action over an episode, beside those of another rollout where one is
// compared, with a cursor in step with the player.

import { showScale } from "./colour_legend.js";
import { isDark, rootScale, themeColours } from "./colours.js";
import { colourBar, loadPlotly } from "./plotting.js";
import { StepCursor } from "./step_cursor.js";
import { actionSign, scaled, textScale } from "./words.js";

const MARGIN = { l: 78, r: 16, t: 18, b: 34 };
const GAP = 0.075;
// Height of each row of plots against that of the others, from top to bottom.
const ROWS = [
  { axis: "y", share: 4 },
  { axis: "y2", share: 2 },
  { axis: "y4", share: 2 },
  { axis: "y5", share: 3 },
  { axis: "y3", share: 9 },
];
const RARE = 0.03;
// Pixels that the name of an action needs; of more actions only some are named.
const LABEL_HEIGHT = 11;
const MAX_LABELLED = 24;
const PROBABILITY_LIGHT = ["#ffffff", "#d3e3f4", "#8fbbe4", "#3f86cb", "#0b4a94"];
const PROBABILITY_DARK = ["#171b21", "#1c3a5e", "#24619f", "#4d98dc", "#b9dcff"];

/** Calls `onStep(step)` when the reader clicks or drags on a trace. */
export class Traces {
  constructor(onStep) {
    this.box = document.getElementById("traces");
    this.plot = document.createElement("div");
    this.plot.className = "plot";
    this.box.append(this.plot);
    this.cursor = new StepCursor(this.box, this.plot, onStep);
    this.sample = null;
    this.other = null;
    new ResizeObserver(() => this.#resize()).observe(this.box);
  }

  /** Draws the traces of a rollout. */
  async open(entry, steps) {
    this.sample = { entry, steps };
    this.other = null;
    await this.redraw();
  }

  /** Draws another rollout with it, `{steps, offset, length, differences}`, or null for none. */
  async setOther(other) {
    this.other = other;
    await this.redraw();
  }

  /** Draws anew, for instance in another theme. */
  async redraw() {
    if (!this.sample) return;
    const Plotly = await loadPlotly();
    const colours = themeColours();
    this.#makeRoom();
    this.drawnSize = this.#size();
    await Plotly.react(this.plot, this.#data(colours), this.#layout(colours), {
      displayModeBar: false,
      responsive: false,
    });
    this.#showLegend();
    this.cursor.setLength(this.sample.entry.length);
  }

  show(step) {
    this.cursor.show(step);
  }

  /** Columns for a table: one row per step. */
  table() {
    const { entry, steps } = this.sample;
    const names = entry.dataset.action_names;
    const columns = {
      step: Array.from({ length: entry.length }, (_, t) => t),
      value: steps.value.data, reward: steps.reward.data,
      action: Array.from(steps.action.data, (action) => names[action]),
    };
    if (steps.terminal_prob) columns.terminal_prob = steps.terminal_prob.data;
    names.forEach((name, action) => {
      columns[`probability ${name}`] = steps.probabilities.map((shares) => shares[action]);
    });
    if (this.other) {
      const { offset } = this.other;
      columns["value beside"] = columns.step.map((t) => this.other.steps.value.data[t + offset] ?? "");
      columns["frame difference"] = this.other.differences?.frames ?? [];
      columns["policy difference"] = this.other.differences?.policy ?? [];
    }
    return columns;
  }

  #data(colours) {
    const { entry, steps } = this.sample;
    const time = Array.from({ length: entry.length }, (_, t) => t);
    const names = entry.dataset.action_names;
    const rows = this.#shownActions();
    const mode = entry.length < 40 ? "lines+markers" : "lines";
    const line = (name, y, yaxis, colour, dash = "solid") => ({
      type: "scatter", mode, name, x: time, y, yaxis, marker: { size: 4 * textScale() },
      line: { color: colour, width: 2 * textScale(), dash },
      hovertemplate: `step %{x}, ${name} %{y:.3f}<extra></extra>`,
    });
    const traces = [
      line("value", Array.from(steps.value.data), "y", colours.accent),
      {
        // One outline for all steps: each bar of its own would take Plotly as long as a whole plot.
        type: "scatter", mode: "lines", name: "reward", yaxis: "y2", fill: "tozeroy",
        x: time.flatMap((t) => [t - 0.5, t + 0.5]), y: time.flatMap((t) => Array(2).fill(steps.reward.data[t])),
        line: { color: colours.simulated, width: 1 }, fillcolor: colours.simulated,
        customdata: time.flatMap((t) => [t, t]),
        hovertemplate: "step %{customdata}, reward %{y:.2f}<extra></extra>",
      },
      {
        type: "heatmap", name: "probability", x: time, y: rows.map((_, row) => row),
        z: rows.map((action) => steps.probabilities.map((shares) => shares[action])), yaxis: "y3",
        colorscale: rootScale(probabilityColours()), zmin: 0, zmax: 1, showscale: false,
        colorbar: { ...colourBar("probability"), ...this.#placeOfActions() },
        customdata: rows.map((action) =>
          time.map((t) => `${steps.action.data[t] === action ? "took " : ""}${names[action]}`)),
        hovertemplate: "step %{x}, %{customdata}: %{z:.2f}<extra></extra>",
      },
    ];
    if (steps.terminal_prob) {
      traces.push(line("P(end)", Array.from(steps.terminal_prob.data), "y4", colours.accent));
    }
    return [...traces, ...this.#otherData(time, line, colours)];
  }

  #otherData(time, line, colours) {
    if (!this.other) return [];
    const { steps, offset, differences } = this.other;
    const shifted = (values) => time.map((t) => values[t + offset] ?? null);
    const traces = [line("value beside", shifted(steps.value.data), "y", colours.simulated, "dot")];
    if (steps.terminal_prob && this.sample.steps.terminal_prob) {
      traces.push(
        line("P(end) beside", shifted(steps.terminal_prob.data), "y4", colours.simulated, "dot"));
    }
    if (differences) {
      traces.push(
        line("frame", time.map((t) => differences.frames[t] ?? null), "y5", colours.text),
        line("policy", time.map((t) => differences.policy[t] ?? null), "y5", colours.quiet, "dash"));
    }
    return traces;
  }

  #layout(colours) {
    const { entry, steps } = this.sample;
    const names = entry.dataset.action_names;
    const rows = this.#shownActions();
    const scale = textScale();
    const margin = scaled(MARGIN, scale);
    const room = Math.max(this.box.clientHeight - margin.t - margin.b, 100);
    const left = names.length - rows.length;
    const axis = {
      gridcolor: colours.grid, linecolor: colours.line, zerolinecolor: colours.line,
      fixedrange: true, automargin: false, ticks: "", zeroline: false, type: "linear",
      // Plotly would else measure every label anew, to turn or to hide it; those here have room.
      ticklabeloverflow: "allow", tickangle: 0,
    };
    const shown = this.#shownRows();
    const domains = rowDomains(shown);
    const every = Math.ceil((rows.length * (LABEL_HEIGHT - 0.5) * scale) / (room * domains.y3[1]));
    const titles = {
      y: this.other ? "Value (dotted: beside)" : "Value", y2: "Reward", y4: "P(end)",
      y5: "Difference of frames (RMS), of policies (total variation, dashed)",
      y3: `Action probability (shade), action taken (dot)${left ? `, ${left} unused not shown` : ""}`,
    };
    return {
      width: this.box.clientWidth, height: this.box.clientHeight, margin,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: colours.font, size: 11 * scale, color: colours.quiet },
      hovermode: "closest", dragmode: false,
      hoverlabel: { bgcolor: colours.surface, bordercolor: colours.line, font: { color: colours.text } },
      xaxis: {
        ...axis, range: [-0.5, entry.length - 0.5], anchor: "y3", showgrid: false,
        title: { text: "step", standoff: 4 }, tickformat: "d",
      },
      yaxis: { ...axis, domain: domains.y, nticks: 4 },
      yaxis2: { ...axis, domain: domains.y2, nticks: 2, range: rewardRange(steps.reward.data) },
      yaxis3: {
        ...axis, domain: domains.y3, range: [rows.length - 0.5, -0.5], showgrid: false,
        tickvals: rows.map((_, row) => row).filter((row) => row % every === 0),
        ticktext: rows.map((action) => actionLabel(names[action])).filter((_, row) => row % every === 0),
        tickfont: { size: 10 * scale },
      },
      yaxis4: { ...axis, domain: domains.y4 ?? [0, 0.01], nticks: 2, range: [-0.03, 1.03] },
      yaxis5: { ...axis, domain: domains.y5 ?? [0, 0.01], nticks: 3, rangemode: "tozero" },
      shapes: [this.#takenActions(rows, {
        stepWidth: Math.max(this.box.clientWidth - margin.l - margin.r, 100) / entry.length,
        rowHeight: (room * (domains.y3[1] - domains.y3[0])) / rows.length, colours,
      })],
      annotations: shown.map(({ axis: name }) => title(titles[name], domains[name][1], colours)),
    };
  }

  /**
   * A dot for each step in the row of its action: all in one path, since Plotly takes as long for 200
   * markers as for all else in these plots. `stepWidth` and `rowHeight` are in pixels.
   */
  #takenActions(rows, { stepWidth, rowHeight, colours }) {
    const { entry, steps } = this.sample;
    const isCrowded = entry.length > 120;
    const radius = (isCrowded ? 1.5 : 2.5) * textScale();
    const [across, down] = [radius / stepWidth, radius / rowHeight];
    const rowOf = new Map(rows.map((action, row) => [action, row]));
    const dots = Array.from(steps.action.data, (action, t) => dot(t, rowOf.get(action), across, down));
    return {
      type: "path", name: "actions taken", xref: "x", yref: "y3", path: dots.join(""),
      fillcolor: colours.highlight, line: { color: colours.surface, width: isCrowded ? 0 : 1 },
    };
  }

  #shownRows() {
    return ROWS.filter(({ axis: name }) =>
      (name !== "y4" || this.sample.steps.terminal_prob) && (name !== "y5" || this.other));
  }

  /** Actions that were taken, or were probable at some step; the others would be empty rows. */
  #shownActions() {
    const { entry, steps } = this.sample;
    return shownActions(steps, entry.dataset.action_names.length);
  }

  /** Where the bar of colours belongs in a saved picture. */
  #placeOfActions() {
    const [low, high] = rowDomains(this.#shownRows()).y3;
    return { y: (low + high) / 2, len: high - low };
  }

  /** Makes the box so high that every action's name can be read; the card scrolls. */
  #makeRoom() {
    const margin = scaled(MARGIN, textScale());
    const labels = Math.min(this.#shownActions().length, MAX_LABELLED) * LABEL_HEIGHT * textScale();
    const height = margin.t + margin.b + labels / rowDomains(this.#shownRows()).y3[1];
    this.box.style.setProperty("--labelled-height", `${Math.ceil(height)}px`);
  }

  /** Written anew in another theme only. */
  #showLegend() {
    const colours = probabilityColours();
    if (colours === this.legendColours) return;
    this.legendColours = colours;
    showScale(document.getElementById("action-legend"), {
      title: "probability", numbers: ["0", "0.25", "1"], colours,
    });
  }

  #size() {
    return `${this.box.clientWidth} ${this.box.clientHeight}`;
  }

  #resize() {
    if (this.sample && this.box.clientWidth > 0 && this.#size() !== this.drawnSize) this.redraw();
  }
}

/** A circle around (x, y) as a path of four curves, in the units of the axes. */
function dot(x, y, across, down) {
  const [bentAcross, bentDown] = [0.5523 * across, 0.5523 * down];
  const [left, right, top, bottom] = [x - across, x + across, y - down, y + down];
  return `M${left},${y}C${left},${y - bentDown},${x - bentAcross},${top},${x},${top}` +
    `C${x + bentAcross},${top},${right},${y - bentDown},${right},${y}` +
    `C${right},${y + bentDown},${x + bentAcross},${bottom},${x},${bottom}` +
    `C${x - bentAcross},${bottom},${left},${y + bentDown},${left},${y}Z`;
}

/** From bottom to top, `[low, high]` of each row in shares of the plot's height. */
function rowDomains(rows) {
  const total = rows.reduce((sum, { share }) => sum + share, 0);
  const height = 1 - GAP * (rows.length - 1);
  const domains = {};
  let top = 1;
  for (const { axis, share } of rows) {
    const low = Math.max(0, top - (height * share) / total);
    domains[axis] = [low, top];
    top = low - GAP;
  }
  return domains;
}

const probabilityColours = () => (isDark() ? PROBABILITY_DARK : PROBABILITY_LIGHT);

const actionLabel = (name) => {
  const sign = actionSign(name);
  return sign === name || sign === "·" ? name.slice(0, 10) : `${name.slice(0, 10)} ${sign}`;
};

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
