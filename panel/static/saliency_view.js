// Saliency of the open rollout: its controls, the overlay, the gradient of the components.

import { fetchArrays } from "./api.js";
import { fillSelect, offerFiles, pickFile } from "./controls.js";
import { COMMANDS, code } from "./notices.js";
import { DEFAULT_DRAWING, PATHS, SaliencyOverlay, choiceIn, gradientOfPath, pathsOf } from "./saliency.js";

const SLIDERS = ["gain", "blur", "threshold"];
const COLOURS = ["negative", "positive"];
const DRAWING = [...SLIDERS, ...COLOURS];
const CHOICES = {
  "saliency-file": "saliency", target: "target", "target-step": "at", path: "path", placement: "placement",
};
const element = (id) => document.getElementById(id);

/**
 * Reads and writes `saliency` (file), `target`, `at`, `path`, `placement` and the settings of drawing
 * in `view`.
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
    return ["saliency", "target", "at", "path"].some((name) => changed.has(name));
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

  /** `{file, target, at, path}` as the address asks, each replaced by one that there is. */
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
    if (!choice?.target) {
      this.overlay = null;
      this.#draw();
      return;
    }
    const saliency = await gradientOfPath(choice.path, (label) =>
      fetchArrays(this.#address("", entry, choice, label)).then((arrays) => arrays.saliency));
    const isStale = this.entry !== entry || JSON.stringify(this.choice) !== JSON.stringify(choice);
    if (isStale) return;
    this.overlay = new SaliencyOverlay(saliency);
    this.overlayPath = choice.path;
    this.#draw();
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
      fetchArrays(this.#address("/components", entry, asked, label)).then((arrays) => {
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

  #address(tail, { episodeId }, { file, target, at }, label) {
    const query = new URLSearchParams({ target, target_step: at, environment_gradient: label });
    return `api/saliency/${file}/samples/${episodeId}${tail}?${query}`;
  }

  #fillControls({ target, at, path }) {
    const file = this.#file;
    const { targets, target_steps: steps, environment_gradients: labels } = file;
    offerFiles("saliency-file", this.#covering, file);
    const paths = pathsOf(labels);
    fillSelect("target", [["", "nothing"], ...targets.map((name) => [name, targetName(name)])], target ?? "");
    fillSelect("target-step", steps.map((step) => [step, step]), at);
    fillSelect("path", paths.map((name) => [name, PATHS[name]]), path);
    element("path-field").hidden = paths.length < 2;
    for (const id of ["target-step-field", "path-field", "drawing", "saliency-key"]) {
      element(id).classList.toggle("off", !target);
    }
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

export const targetName = (target) => target.replaceAll("_", " ");
