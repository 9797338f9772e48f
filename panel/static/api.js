// Asks the server for what it has.

import { requestBuffer, requestJson } from "./transport.js";
import { RequestError } from "./request_error.js";

export { RequestError } from "./request_error.js";

const MAGIC = "DSA1";
const TYPED_ARRAYS = {
  uint8: Uint8Array, int32: Int32Array, float32: Float32Array, float64: Float64Array,
};

/** Everything there is to see; see `Catalogue.describe` in panel/catalogue.py. */
export const fetchCatalogue = () => fetchJson("api/catalogue");

/** `{found, opened}`: how many files there are, and how many the server has opened. */
export const fetchProgress = () => fetchJson("api/progress");

/** Plain values. */
export const fetchJson = (path) => requestJson(path);

/** Named arrays: `{name: {data, shape}}`. The layout is described in panel/binary.py. */
export async function fetchArrays(path) {
  return decodeArrays(await requestBuffer(path));
}

const MAX_TABLES = 100;

/**
 * Episode tables `{column: {data, shape}}` of datasets, by id, many in one answer; those that cannot
 * be read are left out, and `onError(error)` hears why.
 */
export async function fetchEpisodeTables(ids, onError) {
  const parts = Array.from({ length: Math.ceil(ids.length / MAX_TABLES) }, (_, part) =>
    ids.slice(part * MAX_TABLES, (part + 1) * MAX_TABLES));
  const fetched = parts.map((part) => fetchTablesOf(part).catch((error) => {
    if (part.length > 1) return Promise.all(part.map((id) => fetchTablesOf([id]).catch(onError)));
    return onError(error);
  }));
  return new Map((await Promise.all(fetched)).flat(2).filter(Boolean).flatMap((tables) => [...tables]));
}

async function fetchTablesOf(ids) {
  const tables = new Map(ids.map((id) => [id, {}]));
  const arrays = await fetchArrays(`api/episodes?datasets=${ids.join(",")}`);
  for (const [name, array] of Object.entries(arrays)) {
    const [id, column] = name.split("/");
    tables.get(id)[column] = array;
  }
  return tables;
}

const kept = new Map();

/** As `fetchArrays`, but only once: for small results that are drawn again and again. */
export function fetchKept(path) {
  if (!kept.has(path)) {
    const promise = fetchArrays(path);
    promise.catch(() => kept.delete(path));
    kept.set(path, promise);
  }
  return kept.get(path);
}

/** Unpacks one container; the typed arrays are views into `buffer`. */
export function decodeArrays(buffer) {
  const bytes = new Uint8Array(buffer);
  const text = new TextDecoder();
  if (text.decode(bytes.subarray(0, 4)) !== MAGIC) {
    throw new RequestError("The server sent something that is not a container of arrays.");
  }
  const length = new DataView(buffer).getUint32(4, true);
  const start = Math.ceil((8 + length) / 8) * 8;
  const arrays = {};
  for (const entry of JSON.parse(text.decode(bytes.subarray(8, 8 + length)))) {
    const size = entry.shape.reduce((product, extent) => product * extent, 1);
    const data = new TYPED_ARRAYS[entry.dtype](buffer, start + entry.offset, size);
    arrays[entry.name] = { data, shape: entry.shape };
  }
  return arrays;
}

// Two chunks of the file; the first frame of a long rollout need not wait for all others.
const MAX_CHUNK_FRAMES = 32;
const MAX_CHUNK_BYTES = 8 * 2 ** 20;

/** Frames of one episode, fetched in chunks when they are first looked at. */
export class FrameStore {
  /** `frameShape` is [height, width, channels]; larger frames come in smaller chunks. */
  constructor(path, length, frameShape) {
    this.path = path;
    this.length = length;
    const frameBytes = frameShape.reduce((product, extent) => product * extent, 1);
    this.chunk = Math.max(1, Math.min(MAX_CHUNK_FRAMES, Math.floor(MAX_CHUNK_BYTES / frameBytes)));
    this.chunks = new Map();
  }

  /** `{data, height, width, channels}` of one step, or null while it is on its way. */
  peek(step) {
    const chunk = this.chunks.get(Math.floor(step / this.chunk));
    if (!chunk || !chunk.frames) return null;
    const [, height, width, channels] = chunk.frames.shape;
    const size = height * width * channels;
    const offset = (step % this.chunk) * size;
    return { data: chunk.frames.data.subarray(offset, offset + size), height, width, channels };
  }

  /** Waits for the chunk with `step`; the next one is fetched ahead. */
  async load(step) {
    const index = Math.floor(step / this.chunk);
    const wanted = this.#fetchChunk(index);
    await wanted;
    if (step % this.chunk > this.chunk / 2) this.#fetchChunk(index + 1)?.catch(() => {});
    return this.peek(step);
  }

  #fetchChunk(index) {
    const start = index * this.chunk;
    if (start >= this.length) return null;
    if (!this.chunks.has(index)) {
      const chunk = { frames: null, promise: null };
      const stop = Math.min(start + this.chunk, this.length);
      chunk.promise = fetchArrays(`${this.path}?start=${start}&stop=${stop}`).then(
        (arrays) => { chunk.frames = arrays.frames; },
        (error) => { this.chunks.delete(index); throw error; },
      );
      this.chunks.set(index, chunk);
    }
    return this.chunks.get(index).promise;
  }
}
