// Gradients of a target with respect to components, one value per row of an analysis.

import { fetchArrays } from "./api.js";
import { gradientOfPath } from "./saliency.js";

/** Saliency files whose samples an analysis holds too, and that have components. */
const gradientFiles = (files, analysis) =>
  files.filter(({ dataset, num_components: count }) =>
    count > 0 && dataset !== null && Object.values(analysis.source_datasets).includes(dataset));

/** Those of them whose components are those of the analysis: others have the same numbers only. */
export const fittingFiles = (files, analysis) =>
  gradientFiles(files, analysis).filter(({ projection_hash: hash }) => hash === analysis.projection_hash);

/** Whether there is no such file, but one of the components of another projection. */
export const isOfOtherProjection = (files, analysis) =>
  fittingFiles(files, analysis).length === 0 && gradientFiles(files, analysis).length > 0;

/** Fetches the gradients of one choice of target, step and path only once. */
export class GradientRows {
  constructor(rows, file) {
    this.rows = rows;
    this.file = file;
    this.known = new Map();
  }

  /** Resolves to one value per row; NaN where the file has no gradient of that step. */
  async column(component, { target, at, path }) {
    const key = JSON.stringify([target, at, path]);
    if (!this.known.has(key)) this.known.set(key, this.#fetch(target, at, path));
    const { rowOfSample, gradient } = await this.known.get(key);
    const [sources, episodes, steps] = await Promise.all(
      ["source", "episode_id", "step"].map((name) => this.rows.column(name)));
    const { source_names: names, source_datasets: datasets } = this.rows.analysis;
    const isOwn = names.map((name) => datasets[name] === this.file.dataset);
    const [, numSteps, numComponents] = gradient.shape;
    return Float32Array.from(sources, (source, row) => {
      const sample = isOwn[source] ? rowOfSample.get(episodes[row]) : undefined;
      if (sample === undefined || steps[row] >= numSteps) return NaN;
      return gradient.data[(sample * numSteps + steps[row]) * numComponents + component];
    });
  }

  async #fetch(target, at, path) {
    let ids = null;
    const gradient = await gradientOfPath(path, async (label) => {
      const query = new URLSearchParams({ target, target_step: at, environment_gradient: label });
      const arrays = await fetchArrays(`api/saliency/${this.file.id}/components?${query}`);
      ids = arrays.sample_id.data;
      return arrays.gradient;
    });
    return { gradient, rowOfSample: new Map(Array.from(ids, (id, row) => [id, row])) };
  }
}
