// The player: frames with pixel-exact scaling, playback, figures of the current step.

import { RequestError } from "./api.js";
import { describeRollout } from "./rollout_list.js";
import { drawGlyph, steadyNumber, textScale } from "./words.js";

const LIKELY_ACTION_HEIGHT = 21;
const READOUT_HEAD_HEIGHT = 151;
const READOUT_WIDTH = 220;
const SCREEN_GAP = 10;
const SIDE_PADDING = 14;
const SCREEN_SHARE = 0.44;
// Frames per second to begin with, for readers who ask their system for less motion.
const CALM_SPEED = "2";
const element = (id) => document.getElementById(id);

/** Calls `onStep(step)` when the reader moves, `onError(error)` when frames cannot be had. */
export class Player {
  constructor({ onStep, onError }) {
    this.onStep = onStep;
    this.onError = onError;
    this.canvas = element("frame");
    this.overlayCanvas = element("overlay");
    this.greyCanvas = element("grey-frame");
    this.otherCanvas = element("other-frame");
    this.scrubber = element("scrubber");
    this.sample = null;
    this.step = 0;
    this.playing = false;
    this.overlay = null;
    this.isBeside = false;
    this.other = null;
    this.shownActions = 4;
    /** Resolves once any frame has been drawn. */
    this.firstFrame = new Promise((resolve) => { this.announceFrame = resolve; });
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) element("speed").value = CALM_SPEED;
    this.#connect();
    new ResizeObserver(() => this.#fit()).observe(document.querySelector(".stage"));
    window.addEventListener("resize", () => this.#fit());
  }

  /** Shows another rollout; `steps` holds its per-step arrays, `frames` is its `FrameStore`. */
  open(entry, steps, frames) {
    this.sample = { entry, steps, frames };
    this.step = 0;
    const [height, width] = entry.dataset.obs_shape;
    const isSameSize = this.canvas.width === width && this.canvas.height === height;
    if (isSameSize) this.canvas.getContext("2d").clearRect(0, 0, width, height);
    else for (const canvas of this.#canvases()) Object.assign(canvas, { width, height });
    this.setOverlay(null);
    this.setOther(null);
    this.scrubber.max = entry.length - 1;
    element("sample-title").textContent = describeRollout(entry);
    element("done-term").textContent = steps.terminal_prob ? "P(end)" : "Done";
    if (!isSameSize) this.#fit();
  }

  /** Shows one step; the frame follows when it has arrived. */
  show(step) {
    this.step = step;
    this.scrubber.value = step;
    const last = this.sample.entry.length - 1;
    this.scrubber.setAttribute("aria-valuetext", `step ${step} of ${last}`);
    this.#showFigures();
    this.#drawOther();
    if (!this.#drawFrame()) {
      const sample = this.sample;
      sample.frames.load(step).then(
        () => { if (this.sample === sample) this.#drawFrame(); },
        (error) => this.#fail(sample, error),
      );
    }
  }

  /**
   * Signed values drawn over the frame, or over a second, grey copy of it beside the frame; null
   * for none. See saliency.js for `paint`.
   */
  setOverlay(overlay, isBeside = false) {
    if (overlay === null && this.overlay === null) return;
    this.overlay = overlay;
    this.isBeside = isBeside;
    const beside = overlay !== null && isBeside;
    element("saliency-box").hidden = !beside;
    (beside ? element("saliency-screen") : element("screen")).append(this.overlayCanvas);
    // In grey, so that the colours of the frame are not taken for those of the overlay.
    this.canvas.classList.toggle("grey", overlay !== null && !beside);
    this.#fit();
    this.#drawOverlay();
  }

  /** Another rollout in lockstep, `{frames, length, offset, caption}`, or null for none. */
  setOther(other) {
    if (other === null && this.other === null) return;
    this.other = other;
    element("other-box").hidden = !other;
    if (other) element("other-caption").textContent = other.caption;
    this.#fit();
    this.#drawOther();
  }

  togglePlay() {
    if (this.playing) this.pause();
    else this.#play();
  }

  pause() {
    this.playing = false;
    this.#showPlaying();
  }

  /** Moves by some steps, within the rollout. */
  moveBy(offset) {
    this.moveTo(this.step + offset);
  }

  moveTo(step) {
    if (!this.sample) return;
    const bounded = Math.min(Math.max(step, 0), this.sample.entry.length - 1);
    if (bounded !== this.step) this.onStep(bounded);
  }

  #connect() {
    const buttons = {
      "to-first": () => this.moveTo(0),
      "step-back": () => this.moveBy(-1),
      play: () => this.togglePlay(),
      "step-on": () => this.moveBy(1),
      "to-last": () => this.moveTo(Infinity),
      loop: () => this.#toggleLoop(),
    };
    for (const [id, act] of Object.entries(buttons)) element(id).addEventListener("click", act);
    this.scrubber.addEventListener("input", () => this.moveTo(Number(this.scrubber.value)));
  }

  #toggleLoop() {
    const button = element("loop");
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  }

  #play() {
    if (!this.sample) return;
    if (this.step >= this.sample.entry.length - 1) this.moveTo(0);
    this.playing = true;
    this.#showPlaying();
    let due = performance.now();
    const tick = (now) => {
      if (!this.playing) return;
      const period = 1000 / Number(element("speed").value);
      if (now - due >= period) {
        due = Math.max(due + period, now - period);
        this.#advance();
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  #advance() {
    const last = this.sample.entry.length - 1;
    if (this.step < last) this.moveBy(1);
    else if (element("loop").getAttribute("aria-pressed") === "true") this.moveTo(0);
    else this.pause();
  }

  #showPlaying() {
    const button = element("play");
    button.classList.toggle("playing", this.playing);
    button.setAttribute("aria-label", this.playing ? "Pause" : "Play");
  }

  #drawFrame() {
    const { frames, entry } = this.sample;
    const frame = frames.peek(this.step);
    this.canvas.classList.toggle("waiting", !frame);
    if (!frame) return false;
    const context = this.canvas.getContext("2d");
    const image = toImage(frame);
    context.putImageData(image, 0, 0);
    this.greyCanvas.getContext("2d").putImageData(image, 0, 0);
    this.canvas.dataset.step = this.step;
    this.announceFrame();
    this.canvas.setAttribute("aria-label", `Frame ${this.step} of ${entry.length - 1}`);
    this.#drawOverlay();
    frames.load(this.step).catch(() => {});
    return true;
  }

  #canvases() {
    return [this.canvas, this.overlayCanvas, this.greyCanvas, this.otherCanvas];
  }

  #drawOther() {
    if (!this.other) return;
    const { other } = this;
    const step = this.step + other.offset;
    const isOver = step >= other.length;
    element("other-over").hidden = !isOver;
    this.otherCanvas.classList.toggle("waiting", true);
    delete this.otherCanvas.dataset.step;
    if (isOver) return;
    const draw = (frame) => {
      if (this.other !== other || this.step + other.offset !== step) return;
      this.otherCanvas.getContext("2d").putImageData(toImage(frame), 0, 0);
      this.otherCanvas.classList.toggle("waiting", false);
      this.otherCanvas.dataset.step = step;
    };
    const frame = other.frames.peek(step);
    if (frame) draw(frame);
    else other.frames.load(step).then(draw, (error) => this.#fail(this.sample, error));
  }

  #drawOverlay() {
    const context = this.overlayCanvas.getContext("2d");
    context.clearRect(0, 0, this.overlayCanvas.width, this.overlayCanvas.height);
    this.overlay?.paint(context, this.step);
  }

  #showFigures() {
    const { steps, entry } = this.sample;
    const t = this.step;
    const names = entry.dataset.action_names;
    const action = steps.action.data[t];
    element("step-figure").textContent = `${t} of ${entry.length - 1}`;
    element("value-figure").textContent = steadyNumber(steps.value.data[t]);
    element("reward-figure").textContent = steadyNumber(steps.reward.data[t], 2);
    element("done-figure").textContent = steps.terminal_prob
      ? steadyNumber(steps.terminal_prob.data[t], 2)
      : steps.done.data[t] ? "yes" : "no";
    element("action-name").textContent = names[action] ?? `action ${action}`;
    drawGlyph(element("glyph"), names[action] ?? "");
    this.#showLikelyActions(steps.probabilities[t], action, names);
  }

  #showLikelyActions(probabilities, action, names) {
    const order = [...probabilities.keys()]
      .sort((a, b) => probabilities[b] - probabilities[a])
      .slice(0, this.shownActions);
    const list = element("likely-actions");
    while (list.children.length < order.length) list.append(likelyRow());
    while (list.children.length > order.length) list.lastChild.remove();
    order.forEach((candidate, rank) => {
      const [name, bar, figure] = list.children[rank].children;
      name.textContent = names[candidate] ?? candidate;
      bar.firstChild.style.width = `${100 * probabilities[candidate]}%`;
      figure.textContent = probabilities[candidate].toFixed(2);
      list.children[rank].classList.toggle("taken", candidate === action);
    });
  }

  // Whole multiples of the frame's size keep every pixel square and equal; a frame larger than
  // its place is shown at a whole fraction.
  #fit() {
    const { width, height } = this.canvas;
    const stage = document.querySelector(".stage");
    const screens = [...stage.querySelectorAll(".screen-box")].filter((box) => !box.hidden).length;
    // Beside a single frame there is room for the figures; several push them below.
    stage.classList.toggle("several", screens > 1);
    const margin = screens > 1 ? SCREEN_GAP * (screens - 1) : READOUT_WIDTH * textScale();
    const roomAcross = (stage.clientWidth - 2 * SIDE_PADDING * textScale() - margin) / screens;
    const roomDown = Math.max(256, SCREEN_SHARE * document.documentElement.clientHeight);
    const room = Math.min(roomAcross / width, roomDown / height);
    if (!(room > 0)) return;
    const scale = room >= 1 ? Math.floor(room) : 1 / Math.ceil(1 / room);
    for (const canvas of this.#canvases()) {
      canvas.style.width = `${width * scale}px`;
      canvas.style.height = `${height * scale}px`;
    }
    const left = Math.max(height * scale, 256) - READOUT_HEAD_HEIGHT * textScale();
    this.shownActions = Math.max(3, Math.floor(left / (LIKELY_ACTION_HEIGHT * textScale())));
    if (this.sample) this.#showFigures();
  }

  #fail(sample, error) {
    if (this.sample !== sample) return;
    this.pause();
    if (error instanceof RequestError) this.onError(error);
    else throw error;
  }
}

function likelyRow() {
  const row = document.createElement("li");
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.append(document.createElement("i"));
  row.append(document.createElement("span"), bar, document.createElement("span"));
  return row;
}

/** Frame of 1, 3 or 4 channels as an opaque image. */
export function toImage({ data, height, width, channels }) {
  const image = new ImageData(width, height);
  const green = channels >= 3 ? 1 : 0;
  const blue = channels >= 3 ? 2 : 0;
  for (let from = 0, to = 0; from < data.length; from += channels, to += 4) {
    image.data[to] = data[from];
    image.data[to + 1] = data[from + green];
    image.data[to + 2] = data[from + blue];
    image.data[to + 3] = 255;
  }
  return image;
}

/** (T, A) logits as T arrays of probabilities. */
export function softmaxRows({ data, shape: [rows, actions] }) {
  return Array.from({ length: rows }, (_, t) => {
    const logits = data.subarray(t * actions, (t + 1) * actions);
    const top = Math.max(...logits);
    const weights = Array.from(logits, (logit) => Math.exp(logit - top));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return weights.map((weight) => weight / total);
  });
}
