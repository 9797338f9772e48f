// What an intervention does: predicted, observed in simulation and in reality, beside controls.

import { fetchJson, fetchKept } from "./api.js";
import { fillSelect, offerFiles, pickFile } from "./controls.js";
import { EffectCurves, SIGN_FLIP, TESTED, WORLDS } from "./effect_curves.js";
import { COMMANDS, showEmpty } from "./notices.js";
import { drawPlot } from "./plotting.js";
import { plural } from "./words.js";

const SELECTS = {
  "effects-file": "effects", "effect-measure": "effect", "pair-world": "world", "pair-variant": "twinned",
  "pair-number": "pair",
};
const element = (id) => document.getElementById(id);

/**
 * Reads and writes `effects` (file), `effect` (measure), `allEffects`, `world`, `twinned` and `pair` in
 * `view`; draws when it is open. `rolloutsOf(datasetId)` are the rollouts of a dataset.
 */
export class InterventionsView {
  constructor(view, { rolloutsOf }) {
    this.view = view;
    this.rolloutsOf = rolloutsOf;
    this.turn = 0;
    this.curves = null;
    this.findings = new Map();
    for (const [id, name] of Object.entries(SELECTS)) {
      element(id).addEventListener("change", ({ target }) => this.view.update({ [name]: target.value }));
    }
    element("all-effects").addEventListener("change", ({ target }) =>
      this.view.update({ allEffects: target.checked ? "yes" : undefined }));
    element("open-pair").addEventListener("click", () => this.#openPair());
    new ResizeObserver(() => this.redrawPlots()).observe(element("effect-plot"));
  }

  /** Whether a change of the address concerns this view. */
  isConcerned(changed) {
    return ["view", "allEffects", ...Object.values(SELECTS)].some((name) => changed.has(name));
  }

  setCatalogue({ effects }) {
    this.files = effects;
    element("effects-part").hidden = effects.length === 0;
    element("effects-empty").hidden = effects.length > 0;
    if (effects.length > 0) return;
    showEmpty(element("effects-empty"), [
      "No intervention was measured yet.", ["Measure one, with its controls, with", COMMANDS.effects],
      "then reload this page.",
    ]);
  }

  get file() {
    return pickFile(this.view, "effects", this.files);
  }

  get measure() {
    return this.view.pick("effect", this.file.measures);
  }

  /** Draws what the address asks for, if the view is open. */
  async redraw() {
    if (element("view-interventions").hidden || !this.files?.length) return;
    const turn = ++this.turn;
    const { file, measure } = this;
    offerFiles("effects-file", this.files, file);
    element("effects-note").textContent = describe(file);
    if (!this.findings.has(file.id)) this.findings.set(file.id, await fetchJson(`api/effects/${file.id}/findings`));
    if (turn !== this.turn) return;
    const { findings, strengths } = this.findings.get(file.id);
    element("strengths").replaceChildren(...strengths.map(strengthLine));
    this.#showFindings(findings);
    this.#offerPairs();
    await this.#showCurves(findings.filter((one) => one.measure === measure), turn);
  }

  /** Draws the plot anew in another theme or size. */
  async redrawPlots() {
    const box = element("effect-plot");
    if (this.curves) await drawPlot(box, this.curves.traces(), this.curves.layout(box));
  }

  /** Columns for a table: one row per measure and world. */
  table() {
    const { findings } = this.findings.get(this.file.id) ?? { findings: [] };
    const names = ["measure", "meaning", "world", "predicted_by_readout", "predicted_by_gradient", "effect", "low",
      "high", "q_value", "flip", "lowest_control", "highest_control", "num_exceeded", "num_random", "verdict"];
    return Object.fromEntries(names.map((name) => [name, findings.map((one) => one[name])]));
  }

  #showFindings(findings) {
    const { file, measure } = this;
    const isAll = this.view.pick("allEffects", ["yes"], "no") === "yes";
    element("all-effects").checked = isAll;
    element("all-effects-label").textContent = `All ${plural(file.measures.length, "measure")}`;
    const shown = isAll ? file.measures : file.measures.slice(0, file.num_main_measures);
    fillSelect("effect-measure", file.measures.map((name) =>
      [name, findings.find((one) => one.measure === name).meaning]), measure);
    const bodies = (shown.includes(measure) ? shown : [...shown, measure]).map((name) => {
      const body = document.createElement("tbody");
      body.dataset.measure = name;
      const own = findings.filter((one) => one.measure === name);
      body.classList.toggle("chosen", name === measure);
      body.append(this.#headRow(name, own[0].meaning, name === measure), ...own.flatMap(worldRows));
      return body;
    });
    const table = element("findings");
    table.querySelectorAll("tbody").forEach((body) => body.remove());
    table.append(...bodies);
  }

  #headRow(name, meaning, isChosen) {
    const row = document.createElement("tr");
    const head = Object.assign(document.createElement("th"), { colSpan: 4, scope: "rowgroup" });
    const button = Object.assign(document.createElement("button"), {
      type: "button", className: "link", textContent: meaning,
    });
    button.setAttribute("aria-pressed", String(isChosen));
    button.addEventListener("click", () => this.view.update({ effect: name }));
    head.append(button);
    row.append(head);
    return row;
  }

  async #showCurves(findings, turn) {
    const { file, measure } = this;
    const isByRow = file.row_measures.includes(measure);
    element("effect-plot").hidden = !isByRow;
    element("effect-curve-note").textContent = isByRow
      ? `${findings[0].meaning}: difference to the unmodified twin at each step; band: 95% interval. Each world has a scale of its own.`
      : `${findings[0].meaning} belongs to whole episodes: there is no course over the steps.`;
    if (!isByRow) {
      this.curves = null;
      return;
    }
    const arrays = await fetchKept(`api/effects/${file.id}/rows/${encodeURIComponent(measure)}`);
    if (turn !== this.turn) return;
    this.curves = new EffectCurves(file, arrays);
    await this.redrawPlots();
  }

  #offerPairs() {
    const { file } = this;
    const worlds = file.worlds.filter((world) => {
      const recorded = file.recordings[world];
      return recorded?.[file.twin] && file.variants.some((variant) => recorded[variant]);
    });
    element("pairs").hidden = worlds.length === 0;
    element("pairs-note").hidden = worlds.length > 0;
    element("pairs-note").textContent =
      "The recordings of this intervention are not here: they lie in the folder of its result.";
    if (worlds.length === 0) return;
    const world = this.view.pick("world", worlds);
    const variants = file.variants.filter((variant) => file.recordings[world][variant]);
    const variant = this.view.pick("twinned", variants);
    const rollouts = this.rolloutsOf(file.recordings[world][variant]);
    const ids = rollouts.map(({ episodeId }) => `${episodeId}`);
    fillSelect("pair-world", worlds.map((name) => [name, WORLDS[name] ?? name]), world);
    fillSelect("pair-variant", variants.map((name) => [name, variantName(name)]), variant);
    fillSelect("pair-number", ids.map((id) => [id, id]), this.view.pick("pair", ids));
  }

  /** The recording beside its unmodified twin, in lockstep. */
  #openPair() {
    const recorded = this.file.recordings[element("pair-world").value];
    this.view.update({
      data: recorded[element("pair-variant").value], episode: Number(element("pair-number").value), step: 0,
      beside: `twin.${recorded[this.file.twin]}`,
    }, { push: true });
  }
}

function describe(file) {
  const done = Object.entries(file.intervention)
    .filter(([, value]) => Array.isArray(value) && value.length > 0)
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${value.join(" ")}`).join(", ");
  return `${done ? `${done}: ` : ""}${plural(file.num_pairs, "pair")} of recording and twin from ` +
    `${plural(file.num_levels, "level")}; intervals resample levels. Choose a measure to see its course.`;
}

function strengthLine(text) {
  const isCaution = text.startsWith("caution");
  return Object.assign(document.createElement("p"), { className: isCaution ? "problem" : "note", textContent: text });
}

const variantName = (variant) => ({ [TESTED]: "the intervention", [SIGN_FLIP]: "its sign flip" })[variant] ??
  variant.replaceAll("_", " ");

const DIGITS = 3;

/** A number with its sign and three digits that count. */
function signed(value) {
  if (value === null) return "–";
  const text = `${Number(value.toPrecision(DIGITS))}`.replaceAll("-", "−");
  return value > 0 ? `+${text}` : text;
}

/** Numbers in one row, the verdict and the controls that it rests on beneath. */
function worldRows(one) {
  const interval = Object.assign(document.createElement("span"), {
    className: "whole", textContent: `[${signed(one.low)}, ${signed(one.high)}]`,
  });
  const cells = [
    [signed(one.predicted_by_readout)], [signed(one.predicted_by_gradient)],
    // In a narrow view the interval of small numbers stands below its effect.
    [`${signed(one.effect)} `, interval],
  ];
  const numbers = document.createElement("tr");
  numbers.dataset.world = one.world;
  const head = Object.assign(document.createElement("th"), {
    scope: "row", textContent: WORLDS[one.world] ?? one.world,
  });
  numbers.append(head, ...cells.map((content) => {
    const cell = Object.assign(document.createElement("td"), { className: "numeric" });
    cell.append(...content);
    return cell;
  }));
  const verdict = document.createElement("tr");
  const words = Object.assign(document.createElement("td"), {
    colSpan: 3, className: one.verdict.startsWith("beyond") ? "verdict beyond" : "verdict",
    textContent: `${one.verdict} (random controls ${signed(one.lowest_control)} to ${signed(one.highest_control)})`,
  });
  verdict.append(document.createElement("td"), words);
  return [numbers, verdict];
}
