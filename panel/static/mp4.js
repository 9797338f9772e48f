// Writes MP4 files: the browser's own encoder makes H.264 of the frames, this module puts it into
// the container (ISO/IEC 14496-12), with the tables in front so that a player can begin at once.

import { RequestError } from "./request_error.js";

// High profile, level 4: up to 8,192 blocks of 16 × 16 pixels a frame.
const CODEC = "avc1.640028";
const BITS_PER_PIXEL = 0.4;
const LOWEST_BITRATE = 2_000_000;
const MAX_WAITING = 8;
const PAUSE = 5;
const TICKS_PER_FRAME = 1000;
const MICROSECONDS = 1_000_000;
// Width, height and the identity as the container writes them: fixed-point numbers.
const IDENTITY = [0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000].flatMap(long);

/** Takes frames one by one; what it holds is the file so far. */
export class Mp4Encoder {
  constructor({ width, height, fps }) {
    // Colours are stored for blocks of 2 × 2 pixels.
    if (width % 2 || height % 2) throw new Error(`frames of ${width} × ${height}: even sizes expected`);
    Object.assign(this, { width, height, fps });
    this.encoder = null;
    this.count = 0;
    this.chunks = [];
    this.description = null;
    this.failure = null;
  }

  /** Appends what a canvas shows. */
  async add(canvas) {
    this.encoder ??= await this.#open();
    // By looking again and not by its event, which an encoder that failed does not send.
    while (!this.failure && this.encoder.encodeQueueSize >= MAX_WAITING) {
      await new Promise((resolve) => { setTimeout(resolve, PAUSE); });
    }
    if (this.failure) throw this.failure;
    const duration = MICROSECONDS / this.fps;
    const frame = new VideoFrame(canvas, { timestamp: Math.round(this.count * duration), duration });
    this.count += 1;
    this.encoder.encode(frame);
    frame.close();
  }

  async finish() {
    if (!this.failure) await this.encoder.flush();
    if (this.failure) throw this.failure;
    this.close();
    return new Blob(this.#file(), { type: "video/mp4" });
  }

  /** Frees the encoder, of a file that is not wanted any more too. */
  close() {
    if (this.encoder && this.encoder.state !== "closed") this.encoder.close();
  }

  async #open() {
    const { width, height, fps } = this;
    const config = {
      codec: CODEC, width, height, framerate: fps, avc: { format: "avc" },
      bitrate: Math.max(LOWEST_BITRATE, Math.round(BITS_PER_PIXEL * width * height * fps)),
    };
    // Absent too where the address is neither local nor encrypted.
    const isKnown = "VideoEncoder" in window && (await VideoEncoder.isConfigSupported(config)).supported;
    if (!isKnown) {
      throw new RequestError("This browser cannot encode MP4 (H.264) here; save a GIF instead.");
    }
    const encoder = new VideoEncoder({
      output: (chunk, { decoderConfig } = {}) => this.#keep(chunk, decoderConfig),
      error: (error) => { this.failure = error; },
    });
    encoder.configure(config);
    return encoder;
  }

  #keep(chunk, decoderConfig) {
    if (decoderConfig?.description) this.description = bytesOf(decoderConfig.description);
    const data = new Uint8Array(chunk.byteLength);
    chunk.copyTo(data);
    this.chunks.push({ data, isKey: chunk.type === "key" });
  }

  #file() {
    const head = box("ftyp", ascii("isom"), long(0x200), ascii("isomiso2avc1mp41"));
    const length = this.chunks.reduce((sum, { data }) => sum + data.length, 0);
    // The tables tell where the frames begin, and are as long whatever they tell.
    const movieLength = this.#movie(0).length;
    const movie = this.#movie(head.length + movieLength + 8);
    const mediaHead = Uint8Array.of(...long(length + 8), ...ascii("mdat"));
    return [head, movie, mediaHead, ...this.chunks.map(({ data }) => data)];
  }

  #movie(firstByte) {
    const timescale = this.fps * TICKS_PER_FRAME;
    const duration = this.chunks.length * TICKS_PER_FRAME;
    const times = [...long(0), ...long(0), ...long(timescale), ...long(duration)];
    return box("moov",
      box("mvhd", flags(0), times, long(0x10000), [1, 0], zeros(10), IDENTITY, zeros(24), long(2)),
      box("trak",
        box("tkhd", flags(3), long(0), long(0), long(1), long(0), long(duration), zeros(16), IDENTITY,
          long(this.width << 16), long(this.height << 16)),
        box("mdia",
          box("mdhd", flags(0), times, [0x55, 0xc4, 0, 0]),
          box("hdlr", flags(0), long(0), ascii("vide"), zeros(12), ascii("video\0")),
          box("minf",
            box("vmhd", flags(1), zeros(8)),
            box("dinf", box("dref", flags(0), long(1), box("url ", flags(1)))),
            this.#sampleTables(firstByte)))));
  }

  #sampleTables(firstByte) {
    const { chunks } = this;
    const keys = chunks.flatMap(({ isKey }, index) => (isKey ? [index + 1] : []));
    return box("stbl",
      box("stsd", flags(0), long(1), this.#sampleEntry()),
      box("stts", flags(0), long(1), long(chunks.length), long(TICKS_PER_FRAME)),
      box("stss", flags(0), long(keys.length), keys.flatMap(long)),
      box("stsc", flags(0), long(1), long(1), long(chunks.length), long(1)),
      box("stsz", flags(0), long(0), long(chunks.length), chunks.flatMap(({ data }) => long(data.length))),
      box("stco", flags(0), long(1), long(firstByte)));
  }

  #sampleEntry() {
    return box("avc1", zeros(6), [0, 1], zeros(16), short(this.width), short(this.height),
      long(0x480000), long(0x480000), long(0), [0, 1], zeros(32), [0, 24], [0xff, 0xff],
      box("avcC", this.description));
  }
}

function box(name, ...contents) {
  const length = 8 + contents.reduce((sum, content) => sum + content.length, 0);
  const out = new Uint8Array(length);
  out.set([...long(length), ...ascii(name)]);
  let at = 8;
  for (const content of contents) {
    out.set(content, at);
    at += content.length;
  }
  return out;
}

function long(value) {
  return [value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff];
}

const short = (value) => [value >> 8, value & 0xff];
const ascii = (text) => Array.from(text, (letter) => letter.charCodeAt(0));
// A table's version, 0, and its flags.
const flags = (bits) => long(bits);
const zeros = (count) => new Uint8Array(count);
const bytesOf = (source) =>
  ArrayBuffer.isView(source)
    ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength).slice()
    : new Uint8Array(source.slice(0));
