// Draws many points on a plain canvas, pixel by pixel: a million of them without WebGL, which is
// often absent and whose Plotly traces need `eval`, forbidden by this page's security policy.

const SHAPES = {
  circle: (context, r) => context.arc(0, 0, r, 0, 2 * Math.PI),
  square: (context, r) => context.rect(-0.85 * r, -0.85 * r, 1.7 * r, 1.7 * r),
  diamond: (context, r) => polygon(context, [[0, -r], [r, 0], [0, r], [-r, 0]], 1.1),
  "triangle-up": (context, r) => polygon(context, [[0, -r], [r, 0.8 * r], [-r, 0.8 * r]], 1.1),
  cross: (context, r) => {
    context.rect(-r, -r / 3, 2 * r, (2 * r) / 3);
    context.rect(-r / 3, -r, (2 * r) / 3, 2 * r);
  },
  x: (context, r) => {
    context.rotate(Math.PI / 4);
    SHAPES.cross(context, r);
  },
};

function polygon(context, corners, scale) {
  corners.forEach(([x, y], index) => {
    if (index === 0) context.moveTo(x * scale, y * scale);
    else context.lineTo(x * scale, y * scale);
  });
  context.closePath();
}

/** Size in CSS pixels and opacity that keep many points legible. */
export function pointStyle(total) {
  if (total <= 2_000) return { size: 7, opacity: 0.85 };
  if (total <= 20_000) return { size: 5, opacity: 0.75 };
  return { size: 3, opacity: 0.6 };
}

/** Pixels of one mark, `dx` and `dy` from its middle, and how much of each it covers (0 … 1). */
function stamp(symbol, size) {
  const extent = Math.ceil(size) + 2;
  const context = new OffscreenCanvas(extent, extent).getContext("2d");
  context.translate(extent / 2, extent / 2);
  context.beginPath();
  SHAPES[symbol](context, size / 2);
  context.fill();
  const { data } = context.getImageData(0, 0, extent, extent);
  const covered = Array.from({ length: extent * extent }, (_, pixel) => pixel)
    .filter((pixel) => data[4 * pixel + 3] > 0);
  return {
    dx: Int32Array.from(covered, (pixel) => (pixel % extent) - (extent >> 1)),
    dy: Int32Array.from(covered, (pixel) => Math.floor(pixel / extent) - (extent >> 1)),
    covers: Float32Array.from(covered, (pixel) => data[4 * pixel + 3] / 255),
  };
}

export function rgb(colour) {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.subarray(0, 3)];
}

/**
 * Paints points into an opaque image.
 *
 * `positions` holds x, y of each point in pixels of the image (NaN: not drawn), `codes` the row of
 * `palette` ([red, green, blue]) and `symbols` (names) that each point takes.
 */
export function paintPoints(image, positions, codes, palette, symbols, { size, opacity }) {
  const { width, height, data } = image;
  const stamps = new Map([...new Set(symbols)].map((symbol) => [symbol, stamp(symbol, size)]));
  const marks = symbols.map((symbol) => stamps.get(symbol));
  const total = codes.length;
  const stride = coprimeStride(total);
  // A scattered order keeps later rows from hiding earlier ones everywhere.
  for (let count = 0, point = 0; count < total; count += 1, point = (point + stride) % total) {
    const x = Math.round(positions[2 * point]);
    const y = Math.round(positions[2 * point + 1]);
    if (!(x >= 0 && y >= 0 && x < width && y < height)) continue;
    const code = codes[point];
    const [red, green, blue] = palette[code];
    const { dx, dy, covers } = marks[code];
    for (let pixel = 0; pixel < covers.length; pixel += 1) {
      const column = x + dx[pixel];
      const line = y + dy[pixel];
      if (column < 0 || line < 0 || column >= width || line >= height) continue;
      const at = 4 * (line * width + column);
      const weight = covers[pixel] * opacity;
      data[at] += (red - data[at]) * weight;
      data[at + 1] += (green - data[at + 1]) * weight;
      data[at + 2] += (blue - data[at + 2]) * weight;
    }
  }
}

/** More points than this are drawn as a density: single marks would only hide each other. */
export const DENSITY_FROM = 200_000;
const FAINTEST = 0.25;

/**
 * Paints how many points lie in each cell of `cell` pixels: opacity grows with the logarithm of the
 * number, colour is the mean of the points' colours. Arguments as for `paintPoints`.
 */
export function paintDensity(image, positions, codes, palette, cell) {
  const { width, height, data } = image;
  const columns = Math.ceil(width / cell);
  const sums = new Float32Array(4 * columns * Math.ceil(height / cell));
  let most = 0;
  for (let point = 0; point < codes.length; point += 1) {
    const [x, y] = [positions[2 * point], positions[2 * point + 1]];
    if (!(x >= 0 && y >= 0 && x < width && y < height)) continue;
    const at = 4 * (Math.floor(y / cell) * columns + Math.floor(x / cell));
    const colour = palette[codes[point]];
    for (let channel = 0; channel < 3; channel += 1) sums[at + channel] += colour[channel];
    sums[at + 3] += 1;
    most = Math.max(most, sums[at + 3]);
  }
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const from = 4 * (Math.floor(y / cell) * columns + Math.floor(x / cell));
      const number = sums[from + 3];
      if (number === 0) continue;
      const weight = FAINTEST + (1 - FAINTEST) * (Math.log1p(number) / Math.log1p(most));
      const to = 4 * (y * width + x);
      for (let channel = 0; channel < 3; channel += 1) {
        data[to + channel] += (sums[from + channel] / number - data[to + channel]) * weight;
      }
    }
  }
}

/** A step that visits each of `total` places once, the next always far from those before. */
export function coprimeStride(total) {
  const gcd = (a, b) => (b ? gcd(b, a % b) : a);
  let stride = Math.max(1, Math.floor(total * 0.618));
  while (gcd(stride, total) !== 1) stride += 1;
  return stride;
}

/** Index of the point nearest to (x, y) within `reach` pixels, or −1. */
export function nearestPoint(positions, x, y, reach) {
  let best = -1;
  let closest = reach * reach;
  for (let index = 0; 2 * index < positions.length; index += 1) {
    const dx = positions[2 * index] - x;
    const dy = positions[2 * index + 1] - y;
    const distance = dx * dx + dy * dy;
    if (distance <= closest) {
      closest = distance;
      best = index;
    }
  }
  return best;
}
