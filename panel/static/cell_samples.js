// The samples behind one entry of a matrix, those that speak for it first.

import { fetchKept } from "./api.js";
import { correlationShares } from "./correlation_shares.js";
import { COMMANDS } from "./notices.js";
import { number } from "./words.js";

const FOR = 12;
const AGAINST = 4;
const OF_JACOBIANS = new Set(["causation", "push", "agreement"]);

/**
 * Resolves to `{note, command, items}`: items are `{sample, value, caption}`; `command` makes what is
 * missing, where something is.
 *
 * `request` is `{quantity, source, target, lag, variant, value, groupOf, group}`, where the sign of
 * `value` is that of the samples that speak for the entry, and `groupOf(id)` is the name of a sample's
 * group; `files` is `{cross, jacobians, rows}`, the latter two or null.
 */
export function samplesBehind(request, files) {
  return OF_JACOBIANS.has(request.quantity)
    ? jacobianSamples(request, files) : correlatedSamples(request, files);
}

async function jacobianSamples({ source, target, lag, variant, value, groupOf, group }, { cross, jacobians }) {
  if (!jacobians) {
    return {
      note: "The Jacobians of these single samples are not here. Compute them with",
      command: COMMANDS.jacobians, items: [],
    };
  }
  if (lag >= jacobians.num_sim_steps) return { note: "No Jacobian reaches so far.", items: [] };
  const query = new URLSearchParams({
    source_component: source, target_component: target, lag, environment_gradient: variant,
  });
  const { sample_id: ids, effect } = await fetchKept(`api/jacobians/${jacobians.id}/effects?${query}`);
  const [own, later] = [source, target].map((component) => cross.deviation.data[component]);
  const all = Array.from(ids.data, (sample, row) => ({ sample, value: (effect.data[row] * own) / later }))
    .filter((one) => Number.isFinite(one.value) && groupOf(one.sample, group));
  const first = jacobians.num_samples_read < jacobians.num_samples
    ? ` (of the first ${jacobians.num_samples_read} samples)` : "";
  return ranked(all, value, (one) => `Jacobian ${number(one.value, 3)}`,
    `Jacobians of ${all.length} samples${first}`);
}

async function correlatedSamples({ source, target, lag, value, groupOf, group }, { cross, rows }) {
  if (!rows) {
    return {
      note: "No analysis of hidden states of the same samples and projection is here. Make it with",
      command: COMMANDS.analysis, items: [],
    };
  }
  const table = await sampleRows(rows.rows, rows.source);
  const [first, later] = await Promise.all(
    [source, target].map((component) => rows.rows.column(`ica.${component}`)));
  const shares = correlationShares({ ...table, first, later }, {
    deviations: [source, target].map((component) => cross.deviation.data[component]), clip: cross.clip,
    members: table.ids.map((sample) => groupOf(sample, group)), lag, heedsEnds: cross.heedsEnds,
  });
  const all = table.ids.map((sample, index) => ({ sample, value: shares[index] }))
    .filter(({ value: share }) => share !== 0 && Number.isFinite(share));
  return ranked(all, value, (one) => `share ${number(one.value, 3)}`,
    `What each of ${all.length} samples adds to the correlation`);
}

/** Rows of one source of an analysis as samples counted from 0; rows of others have −1. */
async function sampleRows(rows, source) {
  const [sources, episodes, steps, done] = await Promise.all(
    ["source", "episode_id", "step", "done"].map((name) => rows.column(name)));
  const code = rows.analysis.source_names.indexOf(source);
  const ids = [...new Set(episodes.filter((_, row) => sources[row] === code))];
  const positions = new Map(ids.map((id, position) => [id, position]));
  const sampleOf = Int32Array.from(episodes, (id, row) => (sources[row] === code ? positions.get(id) : -1));
  return { sampleOf, steps, done, ids };
}

function ranked(all, value, captionOf, what) {
  const sign = value < 0 ? -1 : 1;
  const sorted = all.toSorted((a, b) => sign * (b.value - a.value));
  const against = sorted.slice(FOR).slice(-AGAINST).filter((one) => one.value * sign < 0);
  const items = [...sorted.slice(0, FOR), ...against];
  const tail = against.length ? `; the last ${against.length} speak most against it` : "";
  return {
    note: `${what}. Those that speak most for this entry come first${tail}.`,
    items: items.map((one) => ({ ...one, caption: captionOf(one) })),
  };
}
