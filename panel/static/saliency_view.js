// Saliency of the open rollout: its controls, the overlay, the gradient of the components.

import { fetchArrays } from "./api.js";
import { fillSelect, offerFiles, pickFile } from "./controls.js";
import { COMMANDS, code } from "./notices.js";
import { DEFAULT_DRAWING, SaliencyOverlay, choiceIn, gradientOfPath, pathOptions } from "./saliency.js";
import { number } from "./words.js";

const SLIDERS = ["gain", "blur", "threshold"];
const COLOURS = ["negative", "positive"];
const DRAWING = [...SLIDERS, ...COLOURS];
const CHOICES = {
  "saliency-file": "saliency", target: "target", "target-step": "at", path: "path", baseline: "baseline",
  placement: "placement",
};
const CONCERNED = ["saliency", "target", "at", "path", "baseline"];
const BASELINES = { black: "black frames", mean: "the mean frame", blurred: "blurred frames" };
const element = (id) => document.getElementById(id);

/**
 * Reads and writes `saliency` (file), `target`, `at`, `path`, `baseline` (of integrated gradients),
 * `placement` and the settings of drawing in `view`.
 */
export class SaliencyView {
  constructor(view, player) {
    this.view = view;
    this.player = player;
    this.files = [];
    this.entry = null;
    for (const [id, name] of Object.entries(CHOICES)) {
      element(id).addEventListener("change", ({ target }) => this.view.update({ [name]: target.value }));
    }
    for (const id of SLIDERS) {
      element(id).addEventListener("input", ({ target }) => this.view.update({ [id]: Number(target.value) }));
    }
    element("usual-drawing").addEventListener("click", () =>
      this.view.update(Object.fromEntries(DRAWING.map((name) => [name, undefined]))));
    for (const id of COLOURS) {
      element(id).addEventListener("input", ({ target }) => this.view.update({ [id]: target.value }));
    }
  }

  /** Shows the saliency of another rollout. */
  async open(entry) {
    this.entry = entry;
    await this.show();
  }

  /** Whether a change of the address concerns the choice of what is shown. */
  isConcerned(changed) {
    return CONCERNED.some((name) => changed.has(name));
  }

  /** Follows a change of the address that needs no other data. */
  followDrawing(changed) {
    if ([...DRAWING, "placement"].some((name) => changed.has(name))) this.#draw();
  }

  /** Files that hold the open rollout. */
  get #covering() {
    return this.files.filter((file) =>
      file.dataset === this.entry?.dataset.id && file.sample_ids.includes(this.entry.episodeId));
  }

  get #file() {
    const covering = this.#covering;
    return covering.length ? pickFile(this.view, "saliency", covering) : undefined;
  }

  /** `{file, target, at, path, baseline}` as the address asks, each replaced by one that there is. */
  get choice() {
    const file = this.#file;
    return file ? { file: file.id, ...choiceIn(file, this.view) } : null;
  }

  /** Fills the controls and draws the overlay that the address asks for. */
  async show() {
    const { entry, choice } = this;
    const isSimulated = entry.dataset.kind === "simulated";
    element("saliency-controls").hidden = !choice;
    this.#showNote(isSimulated && !choice);
    if (choice) this.#fillControls(choice);
    this.#showMethod(choice, null);
    if (!choice?.target) {
      this.overlay = null;
      this.#draw();
      return;
    }
    const { saliency, ...sum } = await this.#signedMap(entry, choice);
    const isStale = this.entry !== entry || JSON.stringify(this.choice) !== JSON.stringify(choice);
    if (isStale) return;
    this.overlay = new SaliencyOverlay(saliency);
    this.overlayPath = choice.path;
    this.#showMethod(choice, sum);
    this.#draw();
  }

  /** `{saliency}` (T, H, W), and of integrated gradients what they have to sum to. */
  async #signedMap(entry, choice) {
    if (choice.baseline) {
      return fetchArrays(this.#address("/integrated", entry, choice, { baseline: choice.baseline }));
    }
    const saliency = await gradientOfPath(choice.path, (label) =>
      fetchArrays(this.#address("", entry, choice, { environment_gradient: label }))
        .then((arrays) => arrays.saliency));
    return { saliency };
  }

  /** What `Components.open` takes, from the saliency file; null where it has none. */
  async components() {
    const { entry, choice } = this;
    const file = this.#file;
    if (!choice || file.num_components === 0) return null;
    const { target } = choice;
    const asked = { ...choice, target: target ?? file.targets[0] };
    let activation = null;
    const slope = await gradientOfPath(asked.path, (label) =>
      fetchArrays(this.#address("/components", entry, asked, { environment_gradient: label })).then((arrays) => {
        activation = arrays.activation;
        return arrays.gradient;
      }));
    const [rows, count] = activation.shape;
    return {
      steps: Int32Array.from({ length: rows }, (_, step) => step), activation,
      gradient: target ? slope : null, length: entry.length,
      names: Array.from({ length: count }, (_, component) => `${component}`),
      of: target ? targetName(target) : "", projectionHash: file.projection_hash,
    };
  }

  #address(tail, { episodeId }, { file, target, at }, chosen) {
    const query = new URLSearchParams({ target, target_step: at, ...chosen });
    return `api/saliency/${file}/samples/${episodeId}${tail}?${query}`;
  }

  #fillControls({ target, at, path, baseline }) {
    const file = this.#file;
    const { targets, target_steps: steps, environment_gradients: labels, baselines } = file;
    offerFiles("saliency-file", this.#covering, file);
    const paths = pathOptions(labels);
    const methods = baselines.map((name) => [name, `integrated gradient, from ${BASELINES[name] ?? name}`]);
    fillSelect("target", [["", "nothing"], ...targets.map((name) => [name, targetName(name)])], target ?? "");
    fillSelect("target-step", steps.map((step) => [step, step]), at);
    fillSelect("path", paths, path);
    fillSelect("baseline", [["", "gradient"], ...methods], baseline);
    element("path-field").hidden = paths.length < 2 || baseline !== "";
    element("baseline-field").hidden = methods.length === 0;
    for (const id of ["target-step-field", "path-field", "baseline-field", "drawing", "saliency-key"]) {
      element(id).classList.toggle("off", !target);
    }
  }

  /** Tells what integrated gradients sum to, once that is known, and what of a file is not drawn. */
  #showMethod(choice, sum) {
    const lines = [
      ...(choice?.baseline && sum ? [describeSum(choice, sum)] : []),
      ...(this.#file?.has_integrated_latents
        ? ["Integrated gradients over the latent, which this file has too, belong to no pixel: they are not drawn."]
        : []),
    ];
    const note = element("method-note");
    note.hidden = !choice?.target || lines.length === 0;
    note.textContent = lines.join(" ");
  }

  /** The settings of drawing that the address asks for, within what the controls allow. */
  get drawing() {
    const settings = { ...DEFAULT_DRAWING, gain: this.overlay?.usualGain ?? DEFAULT_DRAWING.gain };
    for (const name of SLIDERS) {
      const { min, max } = element(name);
      const asked = this.view.get(name) ?? settings[name];
      settings[name] = Math.min(Math.max(asked, Number(min)), Number(max));
      if (settings[name] !== asked) this.view.refuse(name);
    }
    for (const name of COLOURS) {
      const asked = this.view.get(name) ?? settings[name];
      if (/^#[0-9a-f]{6}$/i.test(asked)) settings[name] = asked;
      else this.view.refuse(name);
    }
    return settings;
  }

  #draw() {
    const { drawing } = this;
    for (const name of DRAWING) element(name).value = drawing[name];
    const placement = this.view.pick("placement", ["beside"], "");
    element("placement").value = placement;
    const isUsual = this.view.get("gain") === undefined;
    element("gain-figure").textContent =
      `×${Number((2 ** drawing.gain).toPrecision(2))}${isUsual ? ", by default" : ""}`;
    element("blur-figure").textContent = drawing.blur ? `${drawing.blur} px` : "none";
    element("threshold-figure").textContent = `${Math.round(100 * drawing.threshold)} %`;
    element("saliency-ramp").style.background =
      `linear-gradient(to right, ${drawing.negative}, transparent, ${drawing.positive})`;
    this.overlay?.setDrawing(drawing);
    this.player.setOverlay(this.overlay ?? null, placement === "beside");
  }

  #showNote(isNeeded) {
    const note = element("saliency-note");
    note.hidden = !isNeeded;
    if (!isNeeded) return;
    const isOfOthers = this.files.some(({ dataset }) => dataset === this.entry.dataset.id);
    note.replaceChildren(
      isOfOthers ? "Saliency was not computed for this sample. Add it with " : "No saliency yet. Compute it with ",
      code(COMMANDS.saliency));
  }
}

/** What an integrated gradient sums to and has to; missing it means that the map cannot be relied on. */
function describeSum({ target }, { difference: { data: [difference] }, delta: { data: [delta] }, met }) {
  const missed = met.data[0] === 0 ? ", more than the tolerance of the computation" : "";
  return `The map sums to ${number(difference + delta)}; ${targetName(target)} differs by ${number(difference)} ` +
    `from the baseline’s: ${number(Math.abs(delta))} is missed${missed}. The environment does not answer in it, ` +
    "and components keep the colour of the plain gradient.";
}

export const targetName = (target) => target.replaceAll("_", " ");
