// The simulator and the training: fidelity over the horizon, curves, cards.

import { fetchArrays } from "./api.js";
import { QUALITATIVE } from "./colours.js";
import { fillSelect, pickFile } from "./controls.js";
import { COMMANDS, showEmpty } from "./notices.js";
import { baseLayout, drawPlot, escaped, fixedAxis } from "./plotting.js";
import { textScale } from "./words.js";

const MARGIN = { l: 62, r: 14, t: 8, b: 40 };
const DASHES = ["solid", "dash", "dot"];
const MOST_TICKS = 16;
const HELD_OUT = "heldout_";
const element = (id) => document.getElementById(id);

/** Reads and writes `fidelity`, `measure`, `log` and `curve` in `view`; draws when it is open. */
export class SimulatorView {
  constructor(view) {
    this.view = view;
    this.fidelity = [];
    this.logs = [];
    this.tables = {};
    for (const [id, name] of [["fidelity-file", "fidelity"], ["measure", "measure"], ["log-file", "log"],
      ["log-curve", "curve"]]) {
      element(id).addEventListener("change", ({ target }) => this.view.update({ [name]: target.value }));
    }
    new ResizeObserver(() => this.redraw()).observe(element("fidelity-plot"));
  }

  /** Whether a change of the address concerns this view. */
  isConcerned(changed) {
    return ["fidelity", "measure", "log", "curve"].some((name) => changed.has(name));
  }

  setCatalogue({ fidelity, training, cards }) {
    this.fidelity = fidelity;
    this.logs = training;
    element("cards").replaceChildren(...cards.map(cardOf));
    if (cards.length === 0) {
      showEmpty(element("cards"), ["No agent or simulator lies here.", ["Train them with", COMMANDS.trainAgent],
        ["and", COMMANDS.trainSimulator]]);
    }
    if (fidelity.length === 0) {
      showEmpty(element("fidelity"), ["The simulator was not measured yet.",
        ["Measure it with", COMMANDS.fidelity]]);
    }
    element("training").hidden = training.length === 0;
    element("training-empty").hidden = training.length > 0;
    if (training.length === 0) {
      showEmpty(element("training-empty"), ["No training log lies here.",
        ["An agent's is written by", COMMANDS.trainAgent], ["a simulator's by", COMMANDS.trainSimulator]]);
    }
  }

  /** Draws what the address asks for, if the view is open. */
  async redraw() {
    if (element("view-simulator").hidden) return;
    await Promise.all([this.#showFidelity(), this.#showTraining()]);
  }

  async #showFidelity() {
    if (this.fidelity.length === 0) return;
    const file = pickFile(this.view, "fidelity", this.fidelity);
    const measures = file.measures;
    const measure = this.view.pick("measure", measures);
    fillSelect("fidelity-file", this.fidelity.map(({ id, label }) => [id, label]), file.id);
    fillSelect("measure", measures.map((name) => [name, name.replaceAll("_", " ")]), measure);
    const meaning = file.measure_meanings[measures.indexOf(measure)];
    element("measure-meaning").textContent =
      `${meaning}; mean over ${file.num_windows} held-out windows, band: 95% interval`;
    const curves = await fetchArrays(`api/fidelity/${file.id}/${encodeURIComponent(measure)}`);
    const [count, length] = curves.score.shape;
    const horizon = Array.from(curves.horizon.data);
    const row = (name, index) => Array.from(curves[name].data.subarray(index * length, (index + 1) * length));
    const traces = Array.from({ length: count }, (_, index) => {
      const colour = QUALITATIVE[index % QUALITATIVE.length];
      const name = file.predictions[index].replaceAll("_", " ");
      const [score, lower, upper] = ["score", "lower", "upper"].map((part) => row(part, index));
      const line = {
        type: "scatter", mode: "lines+markers", x: horizon, y: score, name, legendgroup: name,
        line: { color: colour, width: 2 * textScale(), dash: DASHES[Math.floor(index / QUALITATIVE.length)] },
        marker: { size: 5 * textScale() },
        hovertemplate: `horizon %{x}: %{y:.4g}<extra>${escaped(file.prediction_meanings[index])}</extra>`,
      };
      const band = {
        type: "scatter", mode: "lines", x: [...horizon, ...horizon.toReversed()],
        y: [...upper, ...lower.toReversed()], fill: "toself", fillcolor: `${colour}2e`,
        line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: name,
      };
      return [band, line];
    }).flat();
    this.tables.fidelity = { horizon, ...Object.fromEntries(file.predictions.flatMap((name, index) =>
      ["score", "lower", "upper"].map((part) => [`${name} ${part}`, row(part, index)]))) };
    const steps = { ...fixedAxis("horizon (steps)"), dtick: Math.ceil(length / MOST_TICKS) };
    await draw("fidelity-plot", traces, steps, measure.replaceAll("_", " "));
  }

  async #showTraining() {
    if (this.logs.length === 0) return;
    const log = pickFile(this.view, "log", this.logs);
    const names = log.columns.filter((name) => !name.startsWith(HELD_OUT));
    const usual = ["total", "mean_episode_rewards"].find((name) => names.includes(name)) ?? names[0];
    const curve = this.view.pick("curve", names, usual);
    fillSelect("log-file", this.logs.map(({ id, label }) => [id, label]), log.id);
    fillSelect("log-curve", names.map((name) => [name, name.replaceAll("_", " ")]), curve);
    const arrays = await fetchArrays(`api/training/${log.id}`);
    const steps = arrays[log.step_column].data;
    const shown = [[curve, "training", QUALITATIVE[0]], [HELD_OUT + curve, "held out", QUALITATIVE[1]]]
      .filter(([name]) => name in arrays);
    const traces = shown.map(([name, label, colour]) => {
      const rows = [...steps.keys()].filter((row) => Number.isFinite(arrays[name].data[row]));
      return {
        type: "scatter", mode: rows.length < 40 ? "lines+markers" : "lines", name: label,
        x: rows.map((row) => steps[row]), y: rows.map((row) => arrays[name].data[row]),
        line: { color: colour, width: 2 * textScale() }, marker: { size: 5 * textScale() },
      };
    });
    this.tables.training = Object.fromEntries(
      [log.step_column, ...shown.map(([name]) => name)].map((name) => [name, arrays[name].data]));
    await draw("training-plot", traces, fixedAxis(log.step_column), curve.replaceAll("_", " "));
  }
}

function draw(id, traces, xaxis, up) {
  const box = element(id);
  return drawPlot(box, traces, {
    ...baseLayout(box, MARGIN), showlegend: true, legend: { orientation: "h", y: -0.24, yanchor: "top" },
    xaxis, yaxis: fixedAxis(up),
  });
}

/** Title, and the plain values as a list; what is nested stays folded. */
function cardOf({ label, content }) {
  const card = document.createElement("details");
  const title = document.createElement("summary");
  title.textContent = label;
  card.append(title, listOf(content));
  return card;
}

function listOf(content) {
  const list = document.createElement("dl");
  list.className = "plain-list";
  for (const [key, value] of Object.entries(content)) {
    const term = Object.assign(document.createElement("dt"), { textContent: key.replaceAll("_", " ") });
    const definition = document.createElement("dd");
    const isNested = value !== null && typeof value === "object" && !Array.isArray(value);
    if (isNested) definition.append(listOf(value));
    else definition.textContent = Array.isArray(value) ? value.join(", ") : String(value);
    list.append(term, definition);
  }
  return list;
}
