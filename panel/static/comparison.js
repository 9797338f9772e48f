// Rollouts that share their start with another: twins, real counterfactuals, recorded sources.

import { FrameStore } from "./api.js";

const KINDS = {
  twin: "its twin without the intervention",
  intervened: "its twin with the intervention",
  reality: "the same actions in the real environment",
  replayed: "the simulated sample",
  source: "the recorded episode it begins in",
};
const MAX_COMPARED_STEPS = 1024;

/**
 * What a rollout can be shown beside: `{key, label, entry, offset}`, where row t of the rollout
 * belongs beside row t + offset of `entry`.
 */
export function counterparts(entry, entries) {
  const found = [];
  const datasetOf = new Map(entries.map(({ dataset }) => [dataset.id, dataset]));
  for (const [kind, sentence] of Object.entries(KINDS)) {
    for (const id of entry.dataset.relations[kind]) {
      const other = entries.find((candidate) =>
        candidate.dataset.id === id && isCounterpart(kind, entry, candidate));
      if (!other) continue;
      const label = kind === "intervened" ? `${sentence} (${datasetOf.get(id).label})` : sentence;
      const offset = kind === "source" ? entry.sourceRow : 0;
      found.push({ key: `${kind}.${id}`, kind, label, entry: other, offset });
    }
  }
  return found;
}

function isCounterpart(kind, entry, candidate) {
  if (kind === "twin") return candidate.episodeId === entry.twinOf;
  if (kind === "intervened") return candidate.twinOf === entry.episodeId;
  if (kind === "source") return candidate.episodeId === entry.sourceEpisodeId;
  return candidate.episodeId === entry.episodeId;
}

/** How far two rollouts differ at each row they share, each from 0 to 1. */
export async function differences(own, other) {
  const rows = Math.min(own.length, other.length - other.offset, MAX_COMPARED_STEPS);
  const frames = [];
  for (let step = 0; step < rows; step += 1) {
    const [first, second] = await Promise.all([
      own.frames.load(step), other.frames.load(step + other.offset)]);
    frames.push(rootMeanSquare(first.data, second.data) / 255);
  }
  const policy = Array.from({ length: rows }, (_, step) =>
    totalVariation(own.steps.probabilities[step], other.steps.probabilities[step + other.offset]));
  return { frames, policy };
}

function rootMeanSquare(first, second) {
  let sum = 0;
  for (let at = 0; at < first.length; at += 1) sum += (first[at] - second[at]) ** 2;
  return Math.sqrt(sum / first.length);
}

function totalVariation(first, second) {
  return first.reduce((sum, share, action) => sum + Math.abs(share - second[action]), 0) / 2;
}

/** The frames of a rollout, fetched when they are first looked at. */
export const framesOf = (entry) =>
  new FrameStore(`${episodePath(entry)}/frames`, entry.length, entry.dataset.obs_shape);

export const episodePath = ({ dataset, episodeId }) => `api/datasets/${dataset.id}/episodes/${episodeId}`;
