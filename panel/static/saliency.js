// Signed saliency drawn over a frame: blue lowers the target, orange raises it.

const NEGATIVE = [31, 95, 168];
const POSITIVE = [226, 105, 12];
const FULL_STRENGTH_QUANTILE = 0.995;
const SAMPLED = 20000;

/** Values (T, H, W) of one sample and target, ready to be painted at any gain. */
export class SaliencyOverlay {
  constructor({ data, shape: [steps, height, width] }, gain) {
    this.data = data;
    this.steps = steps;
    this.height = height;
    this.width = width;
    this.gain = gain;
    this.scale = highQuantile(data);
  }

  /** Paints the values of one step; strength of colour is their size times the gain. */
  paint(context, step) {
    if (step >= this.steps || this.scale === 0) return;
    const size = this.height * this.width;
    const values = this.data.subarray(step * size, (step + 1) * size);
    const image = new ImageData(this.width, this.height);
    values.forEach((value, pixel) => {
      const colour = value < 0 ? NEGATIVE : POSITIVE;
      image.data.set(colour, 4 * pixel);
      image.data[4 * pixel + 3] = 230 * Math.min(1, (Math.abs(value) * this.gain) / this.scale);
    });
    context.putImageData(image, 0, 0);
  }
}

// Taken over the whole sample, so that steps can be compared with each other.
function highQuantile(data) {
  const stride = Math.max(1, Math.floor(data.length / SAMPLED));
  const sizes = [];
  for (let index = 0; index < data.length; index += stride) {
    if (data[index] !== 0 && Number.isFinite(data[index])) sizes.push(Math.abs(data[index]));
  }
  sizes.sort((a, b) => a - b);
  return sizes[Math.floor(FULL_STRENGTH_QUANTILE * (sizes.length - 1))] ?? 0;
}
