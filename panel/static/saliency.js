// Signed saliency drawn over a frame: one colour where brighter pixels lower the target, another
// where they raise it.

const FULL_STRENGTH_QUANTILE = 0.995;
// Maps have heavy tails: by the largest values alone most of a map would be too faint to see.
const USUAL_QUANTILE = 0.95;
const USUAL_GAINS = { step: 0.25, most: 4 };
const SAMPLED = 20000;
const STRONGEST = 230;
// scipy.ndimage.gaussian_filter(truncate=3) has the same reach.
const KERNEL_REACH = 3;

/** The gain is that of the sample; see `usualGain`. */
export const DEFAULT_DRAWING = { gain: 0, blur: 0, threshold: 0, negative: "#1f5fa8", positive: "#e2690c" };

/**
 * Ways by which a gradient reaches a frame: what each is called, which label of `environment_gradient` it
 * is, and `less`, the one that is taken off that. Names end in what `saliency_experiments.py` calls them.
 */
const PATHS = {
  both: { name: "agent and environment (passed)", of: "passed" },
  agent: { name: "agent without environment (cut)", of: "cut" },
  environment: { name: "what the environment adds (passed − cut)", of: "passed", less: "cut" },
  only: { name: "environment without agent (only)", of: "only" },
  neither: { name: "neither of the two (neither)", of: "neither" },
  mixed: { name: "mixed (passed − cut − only)", of: "mixed" },
};

/** The paths that a file holds, from its labels of `environment_gradient`. */
const pathsOf = (labels) => Object.keys(PATHS).filter((path) => {
  const { of, less = of } = PATHS[path];
  return labels.includes(of) && labels.includes(less);
});

/** `[[path, name], ...]` of those that a file holds. */
export const pathOptions = (labels) => pathsOf(labels).map((path) => [path, PATHS[path].name]);

/**
 * `{target, at, path, baseline}` as the address asks, each replaced by one that the file has; without
 * a target it is null, and without a baseline "", which is the plain gradient.
 */
export function choiceIn(
  { targets, target_steps: steps, environment_gradients: labels, baselines }, view,
) {
  return {
    target: view.pick("target", targets, null), at: view.pick("at", steps),
    path: view.pick("path", pathsOf(labels)), baseline: view.pick("baseline", baselines, ""),
  };
}

/**
 * The gradient along one path, from what a file holds; `read(label)` resolves to an array
 * `{data, shape}`.
 */
export async function gradientOfPath(path, read) {
  const { of, less } = PATHS[path];
  const [whole, part] = await Promise.all([of, less].filter(Boolean).map(read));
  if (!part) return whole;
  return { shape: whole.shape, data: whole.data.map((value, index) => value - part.data[index]) };
}

/** Values (T, H, W) of one sample and target, ready to be painted with any drawing settings. */
export class SaliencyOverlay {
  constructor({ data, shape: [steps, height, width] }) {
    this.data = data;
    this.steps = steps;
    this.height = height;
    this.width = width;
    const sizes = sortedSizes(data);
    this.scale = quantileOf(sizes, FULL_STRENGTH_QUANTILE);
    /** In powers of two: that at which one value in twenty of the sample has full strength. */
    this.usualGain = gainBetween(quantileOf(sizes, USUAL_QUANTILE), this.scale);
    this.setDrawing({ ...DEFAULT_DRAWING, gain: this.usualGain });
  }

  /**
   * `gain` in powers of two, `blur` the standard deviation in pixels of the frame, `threshold` the
   * share of full strength below which nothing is drawn, colours as #rrggbb.
   */
  setDrawing({ gain, blur, threshold, negative, positive }) {
    this.gain = 2 ** gain;
    this.blur = blur;
    this.threshold = threshold;
    this.colours = [channels(negative), channels(positive)];
  }

  /** Paints the values of one step; strength of colour is their size times the gain. */
  paint(context, step) {
    if (step >= this.steps || this.scale === 0) return;
    const size = this.height * this.width;
    const raw = this.data.subarray(step * size, (step + 1) * size);
    const values = this.blur > 0 ? blurred(raw, this.height, this.width, this.blur) : raw;
    const image = new ImageData(this.width, this.height);
    values.forEach((value, pixel) => {
      const strength = Math.min(1, (Math.abs(value) * this.gain) / this.scale);
      if (strength < this.threshold) return;
      image.data.set(this.colours[value < 0 ? 0 : 1], 4 * pixel);
      image.data[4 * pixel + 3] = STRONGEST * strength;
    });
    context.putImageData(image, 0, 0);
  }
}

function channels(colour) {
  return [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16));
}

/** Gaussian blur of a plane; beyond the border its outermost values go on. */
function blurred(values, height, width, deviation) {
  const reach = Math.floor(KERNEL_REACH * deviation + 0.5);
  const weights = Array.from({ length: 2 * reach + 1 }, (_, at) =>
    Math.exp(-((at - reach) ** 2) / (2 * deviation ** 2)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const kernel = weights.map((weight) => weight / total);
  const along = (plane, place) => {
    const result = new Float32Array(plane.length);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        let sum = 0;
        for (let at = -reach; at <= reach; at += 1) sum += kernel[at + reach] * plane[place(y, x, at)];
        result[y * width + x] = sum;
      }
    }
    return result;
  };
  const within = (at, extent) => Math.min(Math.max(at, 0), extent - 1);
  const across = along(values, (y, x, at) => y * width + within(x + at, width));
  return along(across, (y, x, at) => within(y + at, height) * width + x);
}

// Of the whole sample, so that steps can be compared with each other.
function sortedSizes(data) {
  const stride = Math.max(1, Math.floor(data.length / SAMPLED));
  const sizes = [];
  for (let index = 0; index < data.length; index += stride) {
    if (data[index] !== 0 && Number.isFinite(data[index])) sizes.push(Math.abs(data[index]));
  }
  return sizes.sort((a, b) => a - b);
}

const quantileOf = (sorted, share) => sorted[Math.floor(share * (sorted.length - 1))] ?? 0;

function gainBetween(size, scale) {
  const { step, most } = USUAL_GAINS;
  if (!(size > 0)) return 0;
  return Math.min(Math.round(Math.log2(scale / size) / step) * step, most);
}
