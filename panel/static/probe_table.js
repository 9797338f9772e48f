// What components go with: their correlations with variables of the game, by the probe analysis.

import { fetchKept } from "./api.js";
import { showScale } from "./colour_legend.js";
import { divergingColours } from "./colours.js";
import { offerFiles, pickFile } from "./controls.js";
import { COMMANDS, code } from "./notices.js";
import { baseLayout, categoryAxis, cellDots, drawPlot, signedHeatmap } from "./plotting.js";
import { number, signedEnds } from "./words.js";

const MARGIN = { l: 46, r: 12, t: 6, b: 118 };
const MAX_NAMED = 3;
const SCALE_TITLE = "partial correlation";
const element = (id) => document.getElementById(id);

/** Reads and writes `probes` (file) and `probed` (component) in `view`. */
export class ProbeTable {
  constructor(view) {
    this.view = view;
    this.box = element("probe-plot");
    this.content = null;
    element("probe-file").addEventListener("change", ({ target }) => this.view.update({ probes: target.value }));
    element("probed").addEventListener("change", ({ target }) => this.view.update({ probed: target.value }));
    new ResizeObserver(() => this.redrawPlots()).observe(this.box);
  }

  isConcerned(changed) {
    return ["view", "probes", "probed"].some((name) => changed.has(name));
  }

  setCatalogue({ probes }) {
    this.files = probes;
    element("probe-part").hidden = probes.length === 0;
    element("probe-empty").hidden = probes.length > 0;
    element("probe-empty").replaceChildren("What components go with is not known yet. Find out with ",
      code(COMMANDS.probes));
  }

  /** Draws the table, if the view is open; `projectionHash` is that of the components above. */
  async redraw(projectionHash = this.projectionHash) {
    this.projectionHash = projectionHash;
    if (element("view-components").hidden || !this.files?.length) return;
    const file = pickFile(this.view, "probes", this.files);
    offerFiles("probe-file", this.files, file);
    const arrays = await fetchKept(`api/probes/${file.id}/table`);
    this.content = { file, arrays };
    element("probe-mismatch").hidden = !projectionHash || file.projection_hash === projectionHash;
    this.#showComponent();
    await this.redrawPlots();
  }

  async redrawPlots() {
    if (!this.content) return;
    const { file, arrays } = this.content;
    // A variable that was known too rarely has no correlation with anything.
    const known = file.variables.map((_, at) => at)
      .filter((at) => Number.isFinite(arrays.correlation.data[at]));
    const variables = known.map((at) => spaced(file.variables[at]));
    const components = Array.from({ length: file.num_components }, (_, component) => `${component}`);
    const rows = (values) => components.map((_, component) => {
      const row = this.#row(values, component);
      return known.map((at) => row[at]);
    });
    const z = rows(arrays.correlation);
    const limit = Math.max(0.1, ...z.flat().filter(Number.isFinite).map(Math.abs));
    const q = rows(arrays.q);
    const found = components.flatMap((component) => variables
      .filter((_, at) => q[component][at] < file.false_discovery_rate).map((variable) => [variable, component]));
    const heat = signedHeatmap({
      x: variables, y: components, z, limit, customdata: q, scaleTitle: SCALE_TITLE,
      hovertemplate: "component %{y}, %{x}: %{z:.2f}, q %{customdata:.2g}<extra></extra>",
    });
    await drawPlot(this.box, [heat, cellDots(found)], {
      ...baseLayout(this.box, MARGIN), xaxis: { ...categoryAxis(), tickangle: -90 },
      yaxis: { ...categoryAxis("component"), autorange: "reversed" },
    });
    showScale(element("probe-legend"), {
      title: SCALE_TITLE, numbers: signedEnds(limit, 2), colours: divergingColours(),
      note: `● q below ${file.false_discovery_rate}`,
    });
  }

  /** Columns for a table: one row per component and variable. */
  table() {
    if (!this.content) return {};
    const { file, arrays } = this.content;
    const pairs = Array.from({ length: file.num_components }, (_, component) =>
      file.variables.map((variable) => [component, variable])).flat();
    return {
      component: pairs.map(([component]) => component), variable: pairs.map(([, variable]) => variable),
      partial_correlation: arrays.correlation.data, lower: arrays.lower.data, upper: arrays.upper.data,
      q: arrays.q.data,
    };
  }

  #row({ data, shape: [, size] }, component) {
    return Array.from(data.subarray(component * size, (component + 1) * size));
  }

  /** The variables that go most with one component, in words. */
  #showComponent() {
    const { file, arrays } = this.content;
    const select = element("probed");
    const components = Array.from({ length: file.num_components }, (_, at) => `${at}`);
    const component = Number(this.view.pick("probed", components));
    select.replaceChildren(...components.map((at) => new Option(at, at)));
    select.value = component;
    const [r, lower, upper, q] = ["correlation", "lower", "upper", "q"].map((name) => this.#row(arrays[name], component));
    const best = file.variables.map((_, at) => at).filter((at) => q[at] < file.false_discovery_rate)
      .sort((a, b) => Math.abs(r[b]) - Math.abs(r[a])).slice(0, MAX_NAMED);
    element("probe-best").textContent = best.length === 0 ? "goes with no variable beyond chance." :
      `goes most with ${best.map((at) => `${spaced(file.variables[at])} ` +
        `${number(r[at], 2)} (${number(lower[at], 2)} to ${number(upper[at], 2)})`).join(", ")}.`;
  }
}

const spaced = (name) => name.replaceAll("_", " ");
