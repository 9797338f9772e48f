// The rows of an analysis, column by column, and what its variables are called.

import { fetchArrays } from "./api.js";

const AXIS_NAMES = { pca: "PC", ica: "IC", nmf: "NMF" };
const EMBEDDING_NAMES = { tsne: "t-SNE", umap: "UMAP", pca: "PCA layout" };
// By their codes, 0 and 1.
const FLAG_NAMES = { done: ["other steps", "last step"], ever_done: ["does not end", "ends"] };
const NO_CLUSTER = -1;
const NOT_SHOWN = new Set(["episode_id"]);

/** Variables whose values are codes of something that has a name. */
export const CATEGORICAL = new Set(
  ["action", "greedy_action", "cluster", "behaviour", "source", "done", "ever_done"]);

/** Variables that belong to a rollout as a whole, not to a step. */
export const OF_ROLLOUTS = ["return", "trust"];

/** The values that occur, in order; most rows have that of the row before and are not looked up. */
export function presentValues(values) {
  const found = new Set();
  let last;
  for (const value of values) {
    if (value !== last) found.add(value);
    last = value;
  }
  return [...found].sort((a, b) => a - b);
}

/** By what method an analysis is laid out in two dimensions, where its file tells. */
export const embeddingName = ({ embedding_method: method }) =>
  EMBEDDING_NAMES[method] ?? method ?? "Embedding";

/**
 * Choices for an axis: `{key: "pca.0", label: "PC 0", group: "pca"}`, numbered from 0 as in saliency
 * targets, tables and `--swap_directions_from`.
 */
export function axisChoices(analysis) {
  return Object.entries(analysis.coordinate_sets).flatMap(([group, components]) =>
    Array.from({ length: components }, (_, component) => ({
      key: `${group}.${component}`,
      label: `${AXIS_NAMES[group] ?? embeddingName(analysis)} ${component}`, group,
    })),
  );
}

/** Choices among the variables that each row has one value of. */
export function columnChoices(analysis) {
  return [...analysis.columns, ...OF_ROLLOUTS]
    .filter((name) => !NOT_SHOWN.has(name))
    .map((name) => ({ key: name, label: name.replaceAll("_", " "), group: "step" }));
}

/**
 * Fetches columns when they are first needed; `actionNames` belong to the datasets analysed, and
 * `entryOf({source, episodeId})` is the rollout of a row, or undefined.
 */
export class AnalysisRows {
  constructor(analysis, actionNames, entryOf) {
    this.analysis = analysis;
    this.actionNames = actionNames;
    this.entryOf = entryOf;
    this.columns = new Map();
  }

  /** Resolves to a typed array, one value per row, of a variable such as "value" or "ica.3". */
  column(key) {
    if (!this.columns.has(key)) {
      const promise = OF_ROLLOUTS.includes(key) ? this.#ofRollouts(key) : this.#fetch(key);
      promise.catch(() => this.columns.delete(key));
      this.columns.set(key, promise);
    }
    return this.columns.get(key);
  }

  #fetch(key) {
    const [name, component] = key.split(".");
    const query = component === undefined ? "" : `?component=${component}`;
    const path = `api/analyses/${this.analysis.id}/columns/${encodeURIComponent(name)}${query}`;
    return fetchArrays(path).then((arrays) => arrays.values.data);
  }

  /** A value of the whole rollout for each row; NaN where the rollout or the value is not here. */
  async #ofRollouts(name) {
    const [{ groupOf, firstRows }, sources, episodes] = await Promise.all(
      [this.groups(), this.column("source"), this.column("episode_id")]);
    const values = firstRows.map((row) => {
      const source = this.analysis.source_names[sources[row]];
      return this.entryOf({ source, episodeId: episodes[row] })?.[name] ?? NaN;
    });
    return Float32Array.from(groupOf, (group) => values[group]);
  }

  /** What a value of a categorical variable is called. */
  categoryName(variable, value) {
    const name = this.#namesByCode(variable)[value];
    if (name !== undefined) return name;
    if (variable.endsWith("action")) return `action ${value}`;
    return value === NO_CLUSTER ? "none" : String(value);
  }

  /**
   * The value of a categorical variable that is called so, by the first words of a name too where
   * these are no other's ("last" for "last step"); undefined where none is.
   */
  categoryCode(variable, text) {
    const names = this.#namesByCode(variable);
    if (names.includes(text)) return names.indexOf(text);
    const begun = names.flatMap((name, code) => (name.startsWith(`${text} `) ? [code] : []));
    if (begun.length === 1) return begun[0];
    if (variable.endsWith("action") && /^action \d+$/.test(text)) return Number(text.slice("action ".length));
    return names.length === 0 && text === "none" ? NO_CLUSTER : undefined;
  }

  /** Names of the values 0, 1, ...; none of a variable whose values are numbers of clusters. */
  #namesByCode(variable) {
    if (variable === "source") return this.analysis.source_names;
    return variable.endsWith("action") ? this.actionNames : FLAG_NAMES[variable] ?? [];
  }

  /**
   * Which episode each row belongs to: `{groupOf, firstRows}`, where `groupOf[row]` counts episodes
   * from 0 and `firstRows[group]` is some row of that episode.
   */
  async groups() {
    this.grouping ??= Promise.all([this.column("source"), this.column("episode_id")]).then(
      ([sources, episodes]) => groupRows(sources, episodes));
    return this.grouping;
  }
}

function groupRows(sources, episodes) {
  const groupOf = new Int32Array(sources.length);
  const known = new Map();
  const firstRows = [];
  for (let row = 0; row < sources.length; row += 1) {
    // Episode ids stay below 2³¹, so that both fit into one exact number.
    const key = sources[row] * 2 ** 32 + episodes[row];
    let group = known.get(key);
    if (group === undefined) {
      group = firstRows.length;
      known.set(key, group);
      firstRows.push(row);
    }
    groupOf[row] = group;
  }
  return { groupOf, firstRows };
}
