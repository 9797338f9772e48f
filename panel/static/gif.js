// Writes animated GIFs (GIF89a). Every frame has a palette of its own: up to 256 colours are kept
// exactly, of more each group that a median cut leaves takes its mean.

const MAX_COLOURS = 256;
const MAX_CODES = 4096;
const MAX_BLOCK = 255;
// Browsers take shorter delays for a mistake and wait a tenth of a second instead.
const SHORTEST_DELAY = 2;

/** Takes frames one by one; what it holds is the file so far. */
export class GifEncoder {
  constructor({ width, height, fps }) {
    Object.assign(this, { width, height, fps });
    this.count = 0;
    this.parts = [Uint8Array.of(
      ...ascii("GIF89a"), ...short(width), ...short(height), 0, 0, 0,
      // Netscape's extension: repeat for ever.
      0x21, 0xff, 11, ...ascii("NETSCAPE2.0"), 3, 1, 0, 0, 0)];
  }

  /** Appends what a canvas shows. */
  async add(canvas) {
    const { data } = canvas.getContext("2d").getImageData(0, 0, this.width, this.height);
    const { palette, indices } = quantise(new Uint32Array(data.buffer));
    const bits = Math.max(2, Math.ceil(Math.log2(palette.length)));
    const table = new Uint8Array(3 << bits);
    palette.forEach((colour, index) => table.set(colour, 3 * index));
    this.parts.push(
      Uint8Array.of(
        0x21, 0xf9, 4, 0, ...short(this.#delay()), 0, 0,
        0x2c, ...short(0), ...short(0), ...short(this.width), ...short(this.height), 0x80 | (bits - 1)),
      table, Uint8Array.of(bits), inBlocks(compress(indices, bits)));
  }

  async finish() {
    return new Blob([...this.parts, Uint8Array.of(0x3b)], { type: "image/gif" });
  }

  /** Hundredths of a second; rounded so that the frames keep pace on average. */
  #delay() {
    const due = (frame) => Math.round((100 * frame) / this.fps);
    this.count += 1;
    return Math.max(SHORTEST_DELAY, due(this.count) - due(this.count - 1));
  }
}

const ascii = (text) => Array.from(text, (letter) => letter.charCodeAt(0));
const short = (value) => [value & 0xff, value >> 8];

/** Pixels (ABGR) as `{palette: [[red, green, blue], ...], indices}`. */
export function quantise(pixels) {
  const colours = coloursOf(pixels);
  const groups = colours.length <= MAX_COLOURS ? colours.map((colour) => [colour]) : medianCut(colours);
  const indexOf = new Map();
  groups.forEach((group, index) => group.forEach(({ pixel }) => indexOf.set(pixel, index)));
  const indices = new Uint8Array(pixels.length);
  eachRun(pixels, (pixel, from, to) => indices.fill(indexOf.get(pixel), from, to));
  return { palette: groups.map(meanColour), indices };
}

function coloursOf(pixels) {
  const counts = new Map();
  eachRun(pixels, (pixel, from, to) => counts.set(pixel, (counts.get(pixel) ?? 0) + to - from));
  return Array.from(counts, ([pixel, count]) => ({ pixel, count, channels: channelsOf(pixel) }));
}

/** Enlarged frames are made of runs of equal pixels; a look-up for each pixel would take longer. */
function eachRun(pixels, act) {
  for (let from = 0, to; from < pixels.length; from = to) {
    to = from + 1;
    while (to < pixels.length && pixels[to] === pixels[from]) to += 1;
    act(pixels[from], from, to);
  }
}

const channelsOf = (pixel) => [pixel & 0xff, (pixel >> 8) & 0xff, (pixel >> 16) & 0xff];

/** Groups of alike colours; the group with the widest channel is halved until there are enough. */
function medianCut(colours) {
  const groups = [withSpread(colours)];
  while (groups.length < MAX_COLOURS) {
    const widest = groups.reduce((best, group, at) => (group.weight > groups[best].weight ? at : best), 0);
    const { colours: members, channel } = groups[widest];
    members.sort((a, b) => a.channels[channel] - b.channels[channel]);
    const half = halfway(members);
    groups.splice(widest, 1, withSpread(members.slice(0, half)), withSpread(members.slice(half)));
  }
  return groups.map((group) => group.colours);
}

function withSpread(colours) {
  const spreads = [0, 1, 2].map((channel) => {
    const values = colours.map(({ channels }) => channels[channel]);
    return values.reduce((a, b) => Math.max(a, b)) - values.reduce((a, b) => Math.min(a, b));
  });
  const spread = Math.max(...spreads);
  const count = colours.reduce((sum, colour) => sum + colour.count, 0);
  // Wide groups of many pixels first: there a mean would show most.
  return { colours, channel: spreads.indexOf(spread), weight: spread * Math.sqrt(count) };
}

/** Where half of the pixels lie on either side; both sides keep a colour. */
function halfway(members) {
  const total = members.reduce((sum, { count }) => sum + count, 0);
  let before = 0;
  const at = members.findIndex(({ count }) => (before += count) >= total / 2);
  return Math.min(Math.max(at + 1, 1), members.length - 1);
}

function meanColour(group) {
  const total = group.reduce((sum, { count }) => sum + count, 0);
  return [0, 1, 2].map((channel) =>
    Math.round(group.reduce((sum, { count, channels }) => sum + count * channels[channel], 0) / total));
}

/** Lempel, Ziv and Welch's compression as GIF has it, in codes of growing width. */
export function compress(indices, bits) {
  const clear = 1 << bits;
  const out = new BitWriter();
  // Child of a code by its next index; a stamp tells entries of this table from those before.
  const children = new Int32Array(MAX_CODES << 8);
  let stamp = 0;
  let width;
  let next;
  const restart = () => {
    out.write(clear, width ?? bits + 1);
    stamp += 1;
    width = bits + 1;
    next = clear + 2;
  };
  restart();
  let code = indices[0];
  for (let at = 1; at < indices.length; at += 1) {
    const place = (code << 8) | indices[at];
    const child = children[place];
    if (child >> 12 === stamp) {
      code = child & 0xfff;
      continue;
    }
    out.write(code, width);
    if (next === MAX_CODES) restart();
    else {
      children[place] = (stamp << 12) | next;
      // A reader learns a code one step later than the writer.
      if (next === 1 << width) width += 1;
      next += 1;
    }
    code = indices[at];
  }
  out.write(code, width);
  if (next === 1 << width && width < 12) width += 1;
  out.write(clear + 1, width);
  return out.finish();
}

/** Bits packed from the lowest upwards. */
class BitWriter {
  constructor() {
    this.bytes = new Uint8Array(1 << 14);
    this.length = 0;
    this.pending = 0;
    this.held = 0;
  }

  write(value, width) {
    this.pending |= value << this.held;
    this.held += width;
    while (this.held >= 8) this.#push();
  }

  finish() {
    if (this.held > 0) this.#push();
    return this.bytes.subarray(0, this.length);
  }

  #push() {
    if (this.length === this.bytes.length) {
      const larger = new Uint8Array(2 * this.length);
      larger.set(this.bytes);
      this.bytes = larger;
    }
    this.bytes[this.length] = this.pending & 0xff;
    this.length += 1;
    this.pending >>>= 8;
    this.held -= 8;
  }
}

/** Data in blocks, each with its length in front, and an empty one at the end. */
function inBlocks(data) {
  const blocks = Math.ceil(data.length / MAX_BLOCK);
  const out = new Uint8Array(data.length + blocks + 1);
  for (let block = 0; block < blocks; block += 1) {
    const part = data.subarray(block * MAX_BLOCK, (block + 1) * MAX_BLOCK);
    out[block * (MAX_BLOCK + 1)] = part.length;
    out.set(part, block * (MAX_BLOCK + 1) + 1);
  }
  return out;
}
