// One rollout as a moving picture: what the player shows at each step, enlarged, over a line of
// figures.

import { toImage } from "./player.js";
import { steadyNumber } from "./words.js";

const LEAST_WIDTH = 512;
const CAPTION_HEIGHT = 32;
const CAPTION_FONT = '16px system-ui, "Liberation Sans", sans-serif';
const GROUND = "#171b21";
const INK = "#ffffff";
const GAP = 8;
// As the style sheet shows the frame beneath an overlay: grayscale(1) contrast(0.75).
const LUMINANCE = [0.2126, 0.7152, 0.0722];
const CONTRAST = 0.75;

/**
 * Draws the steps of a rollout onto `canvas`, one at a time.
 *
 * `sample` and `other` are the player's, `overlay` what lies over the frame or, with `isBeside`, over
 * a grey copy of it. Every pixel of a frame becomes a square of `scale` pixels.
 */
export class Clip {
  constructor({ sample, overlay, isBeside, other }) {
    Object.assign(this, { sample, overlay, isBeside, other });
    const [height, width] = sample.entry.dataset.obs_shape;
    this.frame = new OffscreenCanvas(width, height);
    this.paint = new OffscreenCanvas(width, height);
    this.pictures = 1 + Number(overlay !== null && isBeside) + Number(other !== null);
    this.scale = Math.max(1, Math.round(LEAST_WIDTH / this.pictures / width));
    const across = this.pictures * width * this.scale + (this.pictures - 1) * GAP;
    this.canvas = new OffscreenCanvas(even(across), even(height * this.scale + CAPTION_HEIGHT));
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.length = sample.entry.length;
  }

  /** Draws one step, once its frames have arrived. */
  async draw(step) {
    const { sample, overlay, isBeside, other, context, canvas } = this;
    const image = toImage(await sample.frames.load(step));
    context.fillStyle = GROUND;
    context.fillRect(0, 0, canvas.width, canvas.height);
    this.place = 0;
    if (!overlay) this.#put(image);
    else {
      if (isBeside) this.#put(image);
      this.#put(grey(image), step);
    }
    const row = step + (other?.offset ?? 0);
    if (other && row < other.length) this.#put(toImage(await other.frames.load(row)));
    this.#write(step);
  }

  /** Puts a picture beside those before, with the overlay of a step on it where one is given. */
  #put(image, overlayStep) {
    const { context, frame, paint, scale } = this;
    const frameContext = frame.getContext("2d");
    frameContext.putImageData(image, 0, 0);
    if (overlayStep !== undefined) {
      const paintContext = paint.getContext("2d");
      paintContext.clearRect(0, 0, paint.width, paint.height);
      this.overlay.paint(paintContext, overlayStep);
      frameContext.drawImage(paint, 0, 0);
    }
    context.imageSmoothingEnabled = false;
    const left = this.place * (frame.width * scale + GAP);
    context.drawImage(frame, left, 0, frame.width * scale, frame.height * scale);
    this.place += 1;
  }

  #write(step) {
    const { context, canvas, sample: { entry, steps } } = this;
    const action = steps.action.data[step];
    const text = [
      `step ${step} of ${entry.length - 1}`, entry.dataset.action_names[action] || `action ${action}`,
      `value ${steadyNumber(steps.value.data[step], 2)}`,
      `reward ${steadyNumber(steps.reward.data[step], 2)}`,
    ].join("  ·  ");
    context.fillStyle = INK;
    context.font = CAPTION_FONT;
    context.textBaseline = "middle";
    context.fillText(text, GAP, canvas.height - CAPTION_HEIGHT / 2, canvas.width - 2 * GAP);
  }
}

const even = (size) => size + (size % 2);

function grey(image) {
  const { data } = image;
  for (let at = 0; at < data.length; at += 4) {
    const light = LUMINANCE.reduce((sum, share, channel) => sum + share * data[at + channel], 0);
    data.fill((light - 127.5) * CONTRAST + 127.5, at, at + 3);
  }
  return image;
}
