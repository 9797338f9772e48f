// Behaviours: clusters of samples, what goes with what and what moves what in each, statements.

import { fetchKept } from "./api.js";
import { agreementCurves, drawAgreement } from "./agreement.js";
import { samplesBehind } from "./cell_samples.js";
import { ALL, Clusters } from "./clusters.js";
import { fillSelect, offerFiles, pickFile } from "./controls.js";
import { Gallery } from "./gallery.js";
import { MatrixPlot, agreementOf, atLag, limitOf, pairName } from "./matrices.js";
import { COMMANDS, code, showEmpty } from "./notices.js";
import { Statements } from "./statements.js";
import { number } from "./words.js";

const QUANTITIES = {
  correlation: "cross-correlation", regression: "regression", causation: "Jacobian",
  push: "finite push", agreement: "agreement of both",
};
const BY_VARIANT = new Set(["causation", "push", "agreement"]);
const VARIANTS = { passed: "passed on", cut: "cut" };
const SELECTS = {
  "behaviours-file": "behaviours", "dynamics-file": "dynamics", "matrix-quantity": "quantity",
  "matrix-variant": "variant", "matrix-order": "order", "agreement-dynamics": "dynamic",
  "agreement-measure": "agreement", "matrix-group": "group",
};
const element = (id) => document.getElementById(id);

/**
 * Reads and writes `behaviours` and `dynamics` (files), `group`, `quantity`, `variant`, `lag`,
 * `order`, `cell` ("3.5"), `dynamic` and `agreement` in `view`; draws when it is open.
 *
 * `entryOf(datasetId, sampleId)` is a rollout, `rowsFor(datasetId, projectionHash)` resolves to
 * `{rows, source}` of an analysis of hidden states, or null.
 */
export class BehavioursView {
  constructor(view, { entryOf, rowsFor, onOpen }) {
    this.view = view;
    this.entryOf = entryOf;
    this.rowsFor = rowsFor;
    this.onOpen = onOpen;
    this.turn = 0;
    this.agreement = { table: {} };
    this.clusters = new Clusters({
      onChoose: (group) => this.view.update({ group }),
      onOpen: (sample, step) => this.#open(this.clusterFile.source_datasets.simulated, sample, step),
    });
    this.matrix = new MatrixPlot((source, target) => this.view.update({ cell: `${source}.${target}` }));
    this.statements = new Statements(({ group, source, target, lag }) =>
      this.view.update({ group, lag, cell: `${source}.${target}` }));
    this.gallery = new Gallery(element("cell-gallery"), onOpen);
    for (const [id, name] of Object.entries(SELECTS)) {
      element(id).addEventListener("change", ({ target }) => this.view.update({ [name]: target.value }));
    }
    element("matrix-lag").addEventListener("input", ({ target }) =>
      this.view.update({ lag: this.crossFile.lags[Number(target.value)] }));
    for (const id of ["cell-source", "cell-target"]) {
      element(id).addEventListener("change", () => this.view.update({
        cell: `${element("cell-source").value}.${element("cell-target").value}`,
      }));
    }
    new ResizeObserver(() => this.#drawAgreement()).observe(element("agreement-plot"));
  }

  /** Whether a change of the address concerns this view. */
  isConcerned(changed) {
    return ["view", "lag", "cell", ...Object.values(SELECTS)].some((name) => changed.has(name));
  }

  setCatalogue(catalogue) {
    this.catalogue = catalogue;
    const { behaviours, cross, consistency } = catalogue;
    element("clusters-part").hidden = behaviours.length === 0;
    element("matrices-part").hidden = cross.length === 0;
    element("consistency-part").hidden = consistency.length === 0;
    const missing = [];
    if (behaviours.length === 0) missing.push(["No clusters of behaviour lie here. Find them with", COMMANDS.behaviours]);
    if (cross.length === 0) {
      missing.push(["No cross-correlations lie here. Compute Jacobians with", COMMANDS.jacobians],
        ["and what goes with what, and moves what, with", COMMANDS.cross]);
    }
    if (consistency.length === 0) missing.push(["No causal statements lie here. Rank them with", COMMANDS.consistency]);
    element("behaviours-empty").hidden = missing.length === 0;
    if (missing.length) showEmpty(element("behaviours-empty"), missing);
  }

  get clusterFile() {
    return pickFile(this.view, "behaviours", this.catalogue.behaviours);
  }

  /** Matrices of the samples that were clustered; of any samples where none were. */
  get #crossFiles() {
    const own = this.catalogue.cross.filter(({ dataset_hash: hash }) => hash === this.clusterFile?.dataset_hash);
    return own.length ? own : this.catalogue.cross;
  }

  get crossFile() {
    return pickFile(this.view, "dynamics", this.#crossFiles);
  }

  /** Of a list of files the one that was made with the same samples and projection as the matrices. */
  #fitting(files) {
    const cross = this.crossFile;
    return files.find((file) =>
      file.dataset_hash === cross?.dataset_hash && file.projection_hash === cross?.projection_hash);
  }

  get group() {
    const clusters = this.clusterFile?.behaviours.map((_, behaviour) => `${behaviour}`) ?? [];
    const known = [ALL, ...clusters, ...(this.crossFile?.groups ?? [])];
    return this.view.pick("group", known);
  }

  get cell() {
    const components = Array.from({ length: this.crossFile.num_components }, (_, at) => at);
    const cells = components.flatMap((source) => components.map((target) => `${source}.${target}`));
    const chosen = this.view.pick("cell", cells, cells[Math.min(1, components.length - 1)]);
    const [source, target] = chosen.split(".").map(Number);
    return { source, target };
  }

  /** Draws what the address asks for, if the view is open. */
  async redraw() {
    if (element("view-behaviours").hidden || !this.catalogue) return;
    const turn = ++this.turn;
    const { clusterFile, crossFile } = this;
    if (clusterFile) {
      offerFiles("behaviours-file", this.catalogue.behaviours, clusterFile);
      await this.clusters.show(clusterFile, this.group);
    }
    if (crossFile && turn === this.turn) await this.#showMatrices(turn);
    if (turn === this.turn) await this.#showConsistency();
  }

  /** Draws the plots anew in another theme. */
  async redrawPlots() {
    if (element("view-behaviours").hidden) return;
    await Promise.all([this.matrix.redraw(), this.#drawAgreement()]);
  }

  async #showMatrices(turn) {
    const file = this.crossFile;
    offerFiles("dynamics-file", this.#crossFiles, file);
    const choice = this.#fillControls(file);
    element("matrix-mismatch").hidden = !this.#isOfOtherClusters(file);
    const isKnown = file.groups.includes(this.group);
    element("matrices").hidden = !isKnown;
    element("matrix-note").hidden = isKnown;
    element("matrix-note").textContent = `There are no matrices of behaviour ${this.group}: too few samples.`;
    if (!isKnown) return;
    const found = await this.#fetchAll(file);
    if (turn !== this.turn) return;
    const chosen = this.#chosen(found, choice);
    const index = file.lags.indexOf(choice.lag);
    const order = choice.order === "related"
      ? Array.from(found.correlation.order.data) : Array.from({ length: file.num_components }, (_, at) => at);
    await this.matrix.show({
      quantity: choice.quantity, lag: choice.lag, order, cell: this.cell,
      value: atLag(chosen.value, index), q: chosen.q ? atLag(chosen.q, index) : null,
      limit: choice.quantity === "correlation" ? 1 : limitOf(chosen.value, file.lags),
    });
    this.#showCell(found, choice, index);
    await this.#showSamples(found, choice, chosen, index, turn);
  }

  #fillControls(file) {
    const has = (name) => file.quantities.includes(name);
    const quantities = [...file.quantities, ...(has("causation") ? ["agreement"] : [])];
    const quantity = this.view.pick("quantity", quantities);
    const variants = file.environment_gradients;
    const variant = this.view.pick("variant", variants) ?? null;
    const usual = file.lags.includes(1) ? 1 : file.lags[0];
    const lag = this.view.pick("lag", file.lags, usual);
    const order = this.view.pick("order", ["number", "related"]);
    fillSelect("matrix-quantity", quantities.map((name) => [name, QUANTITIES[name]]), quantity);
    fillSelect("matrix-variant", variants.map((name) => [name, VARIANTS[name] ?? name]), variant);
    element("matrix-variant-field").hidden = !BY_VARIANT.has(quantity);
    fillSelect("matrix-group", file.groups.map((name, index) => [name,
      `${name === ALL ? "all samples" : `behaviour ${name}`} (${file.num_episodes[index]})`]), this.group);
    element("matrix-group-field").hidden = Boolean(this.clusterFile);
    element("matrix-order").value = order;
    const slider = element("matrix-lag");
    slider.max = file.lags.length - 1;
    slider.value = file.lags.indexOf(lag);
    slider.setAttribute("aria-valuetext", `${lag} steps`);
    element("matrix-lag-figure").textContent = lag;
    const components = Array.from({ length: file.num_components }, (_, at) => [at, at]);
    fillSelect("cell-source", components, this.cell.source);
    fillSelect("cell-target", components, this.cell.target);
    return { quantity, variant, lag, order };
  }

  /** Group sizes tell whether the matrices were made with the clusters that are shown. */
  #isOfOtherClusters(file) {
    if (!this.clusterFile || file.groups.length === 1) return false;
    return this.clusterFile.dataset_hash !== file.dataset_hash || file.groups.some((name, index) =>
      name !== ALL && this.clusterFile.behaviours[Number(name)]?.num_samples !== file.num_episodes[index]);
  }

  /** All matrices of the group, by quantity and, where they have one, variant. */
  async #fetchAll(file) {
    const { group } = this;
    const asked = file.quantities.flatMap((name) =>
      (BY_VARIANT.has(name) ? file.environment_gradients.map((variant) => [name, variant]) : [[name, null]]));
    const found = await Promise.all(asked.map(([name, variant]) => {
      const query = variant ? `?environment_gradient=${encodeURIComponent(variant)}` : "";
      return fetchKept(`api/cross/${file.id}/${name}/${encodeURIComponent(group)}${query}`);
    }));
    return Object.fromEntries(asked.map(([name, variant], index) =>
      [variant ? `${name} ${variant}` : name, found[index]]));
  }

  #chosen(found, { quantity, variant }) {
    if (quantity === "agreement") {
      return { value: agreementOf(found.correlation.value, found[`causation ${variant}`].value), q: null };
    }
    const arrays = found[BY_VARIANT.has(quantity) ? `${quantity} ${variant}` : quantity];
    // Of several nulls the first is drawn; all are told for the chosen pair.
    return { value: arrays.value, q: arrays.q ?? null };
  }

  #showCell(found, { lag }, index) {
    const { source, target } = this.cell;
    const size = this.crossFile.num_components;
    const place = (index * size + source) * size + target;
    const plane = this.crossFile.lags.length * size * size;
    const rows = Object.entries(found).map(([name, arrays]) => {
      const [quantity, variant] = name.split(" ");
      const label = QUANTITIES[quantity] + (variant === "cut" ? ", environment cut" : "");
      const interval = Number.isFinite(arrays.lower?.data[place])
        ? `${number(arrays.lower.data[place])} to ${number(arrays.upper.data[place])}` : "–";
      const tests = arrays.q ? Array.from({ length: arrays.q.shape[0] }, (_, test) => {
        const q = number(arrays.q.data[test * plane + place]);
        return arrays.q.shape[0] > 1 ? `${this.crossFile.nulls[test].replaceAll("_", " ")} ${q}` : q;
      }) : ["–"];
      const line = document.createElement("tr");
      const whole = Object.assign(cell("td", interval), { className: "numeric whole" });
      line.append(cell("th", label), cell("td", number(arrays.value.data[place])), whole,
        cell("td", tests.join(", ")));
      line.dataset.quantity = name;
      return line;
    });
    element("cell-title").textContent = pairName(this.cell, lag) +
      (this.group === ALL ? ", all samples" : `, behaviour ${this.group}`);
    element("cell-rows").replaceChildren(...rows);
  }

  async #showSamples(found, choice, chosen, index, turn) {
    const file = this.crossFile;
    const dataset = this.catalogue.datasets.find(({ hash }) => hash === file.dataset_hash);
    const groups = await this.#groups();
    const { source, target } = this.cell;
    const size = file.num_components;
    // What speaks for an agreement is a Jacobian with the sign of the mean one: both may be negative.
    const { data } = (choice.quantity === "agreement" ? found[`causation ${choice.variant}`] : chosen).value;
    const request = {
      ...choice, source, target, group: this.group, value: data[(index * size + source) * size + target],
      groupOf: (sample, group) => group === ALL || groups.get(sample) === group,
    };
    const { note, command, items } = await samplesBehind(request, {
      cross: { deviation: found.correlation.deviation, clip: file.clip, heedsEnds: file.heeds_ends },
      jacobians: this.#fitting(this.catalogue.jacobians),
      rows: dataset ? this.rowsFor(dataset.id, file.projection_hash) : null,
    });
    if (turn !== this.turn) return;
    element("cell-note").replaceChildren(note, ...(command ? [" ", code(command)] : []));
    this.gallery.show(items.flatMap(({ sample, caption }) => {
      const entry = dataset && this.entryOf(dataset.id, sample);
      return entry ? [{ entry, step: 0, caption }] : [];
    }));
  }

  async #groups() {
    if (!this.clusterFile) return new Map();
    const { sample_id: ids, behaviour } = await fetchKept(`api/behaviours/${this.clusterFile.id}/samples`);
    return new Map(Array.from(ids.data, (sample, row) => [sample, `${behaviour.data[row]}`]));
  }

  async #showConsistency() {
    const file = this.#fitting(this.catalogue.consistency) ?? this.catalogue.consistency[0];
    if (!file) return;
    await this.statements.show(file, this.group);
    const group = file.groups.includes(this.group) ? this.group : ALL;
    const arrays = await fetchKept(`api/consistency/${file.id}/agreement/${encodeURIComponent(group)}`);
    const dynamics = this.view.pick("dynamic", file.dynamics);
    const measure = this.view.pick("agreement", file.measures);
    fillSelect("agreement-dynamics", file.dynamics.map((name) => [name, `${name}s`]), dynamics);
    fillSelect("agreement-measure",
      file.measures.map((name, index) => [name, file.measure_meanings[index]]), measure);
    const title = file.measure_meanings[file.measures.indexOf(measure)];
    this.agreement = { ...agreementCurves({ file, arrays, dynamics, measure }), title };
    element("agreement-note").textContent = `By chance: ${file.null_meanings[0]}. Filled: q below 0.05.`;
    await this.#drawAgreement();
  }

  async #drawAgreement() {
    const { traces, title } = this.agreement;
    if (traces) await drawAgreement(element("agreement-plot"), traces, title);
  }

  #open(datasetId, sample, step) {
    const entry = this.entryOf(datasetId, sample);
    if (entry) this.onOpen(entry, step);
  }
}

function cell(tag, text) {
  const found = Object.assign(document.createElement(tag), { textContent: text });
  if (tag === "th") found.scope = "row";
  else found.className = "numeric";
  return found;
}
