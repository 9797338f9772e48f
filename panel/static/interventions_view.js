// What an intervention does: predicted, observed in simulation and in reality, beside controls.

import { fetchJson, fetchKept } from "./api.js";
import { fillSelect, offerFiles, pickFile, pickKnown } from "./controls.js";
import { QUALITATIVE, themeColours } from "./colours.js";
import { COMMANDS, showEmpty } from "./notices.js";
import { baseLayout, drawPlot, fixedAxis } from "./plotting.js";
import { number, plural, textScale } from "./words.js";

const MARGIN = { l: 52, r: 12, t: 24, b: 40 };
const GAP = 0.06;
const TESTED = "tested";
const SIGN_FLIP = "sign_flip";
const WORLDS = { simulated: "simulation", real: "reality" };
const PREDICTED = { readout: "predicted by the heads", gradient: "predicted by the gradient" };
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
    this.curves = { table: {} };
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
    return pickFile(this.files, this.view.get("effects"));
  }

  get measure() {
    return pickKnown(this.file.measures, this.view.get("effect"));
  }

  /** Draws what the address asks for, if the view is open. */
  async redraw() {
    if (element("view-interventions").hidden || !this.files?.length) return;
    const turn = ++this.turn;
    const { file, measure } = this;
    offerFiles("effects-file", this.files, file);
    if (!this.findings.has(file.id)) this.findings.set(file.id, await fetchJson(`api/effects/${file.id}/findings`));
    if (turn !== this.turn) return;
    const { findings, strengths } = this.findings.get(file.id);
    element("effects-note").textContent = describe(file);
    element("strengths").replaceChildren(...strengths.map(strengthLine));
    this.#showFindings(findings);
    this.#offerPairs();
    await this.#showCurves(findings.filter((one) => one.measure === measure), turn);
  }

  /** Draws the plot anew in another theme or size. */
  async redrawPlots() {
    if (this.curves.traces) await drawPlot(element("effect-plot"), this.curves.traces(), this.curves.layout());
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
    const isAll = this.view.get("allEffects") === "yes";
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
    const head = Object.assign(document.createElement("th"), { colSpan: 5, scope: "rowgroup" });
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
      ? `${findings[0].meaning}: difference to the unmodified twin at each step; band: 95% interval.`
      : `${findings[0].meaning} belongs to whole episodes: there is no course over the steps.`;
    if (!isByRow) {
      this.curves = { table: {} };
      return;
    }
    const arrays = await fetchKept(`api/effects/${file.id}/rows/${encodeURIComponent(measure)}`);
    if (turn !== this.turn) return;
    this.curves = effectCurves(file, arrays);
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
    const world = pickKnown(worlds, this.view.get("world"));
    const variants = file.variants.filter((variant) => file.recordings[world][variant]);
    const variant = pickKnown(variants, this.view.get("twinned"));
    const rollouts = this.rolloutsOf(file.recordings[world][variant]);
    const ids = rollouts.map(({ episodeId }) => `${episodeId}`);
    fillSelect("pair-world", worlds.map((name) => [name, WORLDS[name] ?? name]), world);
    fillSelect("pair-variant", variants.map((name) => [name, variantName(name)]), variant);
    fillSelect("pair-number", ids.map((id) => [id, id]), pickKnown(ids, this.view.get("pair")));
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

/** Traces by world side by side; functions, since their colours follow the theme. */
function effectCurves(file, { effect, lower, upper, predicted }) {
  const [, numVariants, numSteps] = effect.shape;
  const steps = Array.from({ length: numSteps }, (_, step) => step);
  const row = ({ data }, place) => Array.from(data.subarray(place * numSteps, (place + 1) * numSteps));
  const table = { step: steps };
  const width = (1 - GAP * (file.worlds.length - 1)) / file.worlds.length;
  const traces = () => file.worlds.flatMap((world, w) => {
    const axes = w === 0 ? {} : { xaxis: `x${w + 1}` };
    const line = (y, name, extra) => ({
      type: "scatter", mode: "lines", x: steps, y, name, legendgroup: name, showlegend: w === 0, ...axes,
      hovertemplate: `step %{x}: %{y:.3g}<extra>${name}</extra>`, ...extra,
    });
    const controls = file.variants.flatMap((variant, v) => {
      if (variant === TESTED) return [];
      const isFlip = variant === SIGN_FLIP;
      const name = isFlip ? "sign flip" : "random direction";
      const isFirst = file.variants.findIndex((other) => (other === SIGN_FLIP) === isFlip && other !== TESTED) === v;
      return [line(row(effect, w * numVariants + v), name, {
        showlegend: w === 0 && isFirst,
        line: { color: isFlip ? QUALITATIVE[3] : themeColours().quiet, width: isFlip ? 2 : 1, dash: isFlip ? "dash" : "solid" },
      })];
    });
    const tested = w * numVariants + file.variants.indexOf(TESTED);
    const band = {
      type: "scatter", mode: "lines", x: [...steps, ...steps.toReversed()], ...axes,
      y: [...row(upper, tested), ...row(lower, tested).toReversed()], fill: "toself", fillcolor: `${QUALITATIVE[0]}2e`,
      line: { width: 0 }, hoverinfo: "skip", showlegend: false,
    };
    const forecasts = file.predictions.flatMap((prediction, p) => {
      const kind = prediction.split("_")[0];
      if (!prediction.endsWith(`_${world}`)) return [];
      const isReadout = kind === "readout";
      return [line(row(predicted, p), PREDICTED[kind] ?? prediction, {
        showlegend: w === 0, line: { color: isReadout ? QUALITATIVE[1] : QUALITATIVE[2], width: 2, dash: isReadout ? "dot" : "dashdot" },
      })];
    });
    return [band, ...controls, ...forecasts, line(row(effect, tested), "observed", {
      mode: "lines+markers", marker: { size: 5 }, line: { color: QUALITATIVE[0], width: 2.5 },
    })];
  });
  file.worlds.forEach((world, w) => {
    file.variants.forEach((variant, v) => { table[`${world} ${variant}`] = row(effect, w * numVariants + v); });
    const tested = w * numVariants + file.variants.indexOf(TESTED);
    table[`${world} lower`] = row(lower, tested);
    table[`${world} upper`] = row(upper, tested);
  });
  file.predictions.forEach((prediction, p) => { table[`predicted ${prediction}`] = row(predicted, p); });
  const layout = () => ({
    ...baseLayout(element("effect-plot"), MARGIN), showlegend: true,
    legend: { orientation: "h", y: -0.24, yanchor: "top", font: { size: 10 * textScale() } },
    yaxis: fixedAxis(""),
    ...Object.fromEntries(file.worlds.map((_, w) => [`xaxis${w === 0 ? "" : w + 1}`, {
      ...fixedAxis("step"), domain: [w * (width + GAP), w * (width + GAP) + width], anchor: "y",
    }])),
    annotations: file.worlds.map((world, w) => ({
      text: WORLDS[world] ?? world, x: w * (width + GAP) + width / 2, xref: "paper", y: 1, yref: "paper",
      yanchor: "bottom", showarrow: false, font: { size: 11 * textScale(), color: themeColours().text },
    })),
  });
  return { traces, layout, table };
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

const signed = (value) => (value === null ? "–" : `${value > 0 ? "+" : ""}${number(value)}`);

/** Numbers in one row, the verdict beneath. */
function worldRows(one) {
  const cells = [
    signed(one.predicted_by_readout), signed(one.predicted_by_gradient),
    `${signed(one.effect)} [${signed(one.low)}, ${signed(one.high)}]`,
    `${signed(one.lowest_control)} to ${signed(one.highest_control)}`,
  ];
  const numbers = document.createElement("tr");
  numbers.dataset.world = one.world;
  const head = Object.assign(document.createElement("th"), {
    scope: "row", textContent: WORLDS[one.world] ?? one.world,
  });
  numbers.append(head, ...cells.map((text) =>
    Object.assign(document.createElement("td"), { className: "numeric", textContent: text })));
  const verdict = document.createElement("tr");
  const words = Object.assign(document.createElement("td"), {
    colSpan: 4, className: one.is_beyond_controls ? "verdict beyond" : "verdict", textContent: one.verdict,
  });
  verdict.append(document.createElement("td"), words);
  return [numbers, verdict];
}
