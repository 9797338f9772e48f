// The page: connects list, player, the views of the open rollout, and the address.

import { AnalysisRows, axisChoices } from "./analysis_rows.js";
import { RequestError, fetchArrays, fetchCatalogue, fetchEpisodeTables, fetchProgress } from "./api.js";
import { BehavioursView } from "./behaviours_view.js";
import { ClipView } from "./clip_view.js";
import { onThemeChange } from "./colours.js";
import { episodePath, framesOf } from "./comparison.js";
import { ComparisonView } from "./comparison_view.js";
import { Components } from "./components.js";
import { pickFile } from "./controls.js";
import { addExport } from "./export.js";
import { FilesView } from "./files_view.js";
import { FilterView } from "./filter_view.js";
import { Gallery } from "./gallery.js";
import { InterventionsView } from "./interventions_view.js";
import { COMMANDS, code, showEmpty } from "./notices.js";
import { Player, softmaxRows, toImage } from "./player.js";
import { allowPlotly, fetchPlotlyAhead, isPlotlyRunning, loadPlotly } from "./plotting.js";
import { ProbeTable } from "./probe_table.js";
import { RolloutList, describeRollout, rolloutEntries } from "./rollout_list.js";
import { SaliencyView } from "./saliency_view.js";
import { Scatter, colourChoices } from "./scatter.js";
import { SimulatorView } from "./simulator_view.js";
import { Tabs } from "./tabs.js";
import { Traces } from "./traces.js";
import { ViewState } from "./view_state.js";
import { count, plural } from "./words.js";

const element = (id) => document.getElementById(id);
const MAX_LASSO_THUMBNAILS = 32;
// Milliseconds; a catalogue that has been made before takes a tenth of that.
const PROGRESS_PERIOD = 1000;
// Pixels between the pointer and what is told about the point under it.
const POINTER_GAP = 14;

class Page {
  constructor() {
    this.view = new ViewState();
    this.view.addEventListener("refused", ({ detail }) => this.report(new RequestError(detail)));
    this.view.tellRefusals();
    this.entries = [];
    this.current = null;
    this.opening = 0;
    this.underWay = 0;
    this.player = new Player({
      onStep: (step) => this.view.update({ step }),
      onError: (error) => this.report(error),
    });
    this.traces = new Traces((step) => this.view.update({ step }));
    this.scatter = new Scatter((point) => this.openPoint(point));
    this.lassoed = new Gallery(element("lasso-gallery"), (entry, step) => this.openEntry(entry, step));
    this.scatter.onLasso = (lasso) => this.view.update({ lasso });
    element("lasso").addEventListener("click", () => this.toggleLasso());
    element("clear-lasso").addEventListener("click", () => this.view.update({ lasso: undefined }));
    this.scatter.onHover = (point, event) => this.showHover(point, event);
    this.components = new Components(this.view, (step) => this.view.update({ step }));
    this.saliency = new SaliencyView(this.view, this.player);
    this.comparison = new ComparisonView(this.view, this.player, this.traces);
    this.clips = new ClipView(this.player, (action) => this.guard(action));
    this.list = new RolloutList(this.view, (entry, step) => this.openEntry(entry, step));
    this.filter = new FilterView(this.view, {
      entryOf: (point) => this.entryOf(point, this.filter.rows.analysis),
      numRollouts: () => this.entries.length,
      onMatches: (steps) => this.list.setMatches(steps),
      onOpen: (entry, step) => this.openEntry(entry, step),
    });
    this.simulator = new SimulatorView(this.view);
    this.behaviours = new BehavioursView(this.view, {
      entryOf: (datasetId, episodeId) => this.entryByName.get(`${datasetId} ${episodeId}`),
      rowsFor: (datasetId, projectionHash) => this.rowsFor(datasetId, projectionHash),
      onOpen: (entry, step) => this.openEntry(entry, step),
    });
    this.interventions = new InterventionsView(this.view, {
      rolloutsOf: (datasetId) => this.entries.filter(({ dataset }) => dataset.id === datasetId),
    });
    this.probes = new ProbeTable(this.view);
    this.results = [this.simulator, this.behaviours, this.interventions, this.probes];
    this.files = new FilesView(this.view, (action) => this.guard(action));
    this.tabs = new Tabs(this.view, () => this.guard(() =>
      Promise.all([this.components, ...this.results].map((one) => one.redraw()))));
    this.#addExports();
    this.view.addEventListener("change", ({ detail }) => this.act(() => this.follow(detail)));
    document.addEventListener("keydown", (event) => this.pressKey(event));
    // What nobody waits for, such as saving a plot or drawing it in another size.
    window.addEventListener("unhandledrejection", (event) => {
      event.preventDefault();
      this.guard(() => Promise.reject(event.reason));
    });
    onThemeChange(() => this.guard(() => Promise.all([
      ...[this.traces, this.scatter, this.components, this.simulator].map((plot) => plot.redraw()),
      ...[this.behaviours, this.interventions, this.probes].map((view) => view.redrawPlots()),
    ])));
  }

  #addExports() {
    const rollout = () => `${this.current?.dataset.kind}-${this.current?.episodeId}`;
    const { traces, components, scatter, simulator, behaviours, interventions, probes } = this;
    addExport(element("traces"), {
      label: "traces", name: () => `traces-${rollout()}`, plot: traces.plot, table: () => traces.table(),
    });
    addExport(element("bars-head"), {
      label: "bars", name: () => `components-${rollout()}-step-${components.step}`,
      plot: components.bars, table: () => components.table(), legend: () => components.legendOfBars(),
    });
    addExport(element("map-head"), {
      label: "map", name: () => `components-${rollout()}`, plot: components.map,
      table: () => components.table(),
    });
    addExport(element("scatter-foot"), {
      label: "scatter", name: () => "hidden-states", plot: scatter.plot, table: () => scatter.tableOfPoints(),
      layers: () => [scatter.canvas, scatter.pathCanvas], legend: () => scatter.legendContent(),
    });
    addExport(element("clusters-head"), {
      label: "clusters", name: () => "behaviours", table: () => behaviours.clusters.table(),
    });
    addExport(element("matrix-head"), {
      label: "matrix", name: () => `${behaviours.matrix.content.quantity}-lag-${behaviours.matrix.content.lag}`,
      plot: behaviours.matrix.box, table: () => behaviours.matrix.table(),
    });
    addExport(element("agreement-head"), {
      label: "agreement", name: () => "agreement", plot: element("agreement-plot"),
      table: () => behaviours.agreement.table,
    });
    addExport(element("statements-head"), {
      label: "statements", name: () => "causal-statements", table: () => behaviours.statements.table(),
    });
    addExport(element("findings-head"), {
      label: "findings", name: () => "intervention", table: () => interventions.table(),
    });
    addExport(element("effect-head"), {
      label: "effect", name: () => `effect-${interventions.measure}`, plot: element("effect-plot"),
      table: () => interventions.curves?.table() ?? {},
    });
    addExport(element("probe-head"), {
      label: "probes", name: () => "components-and-variables", plot: probes.box, table: () => probes.table(),
    });
    for (const name of ["fidelity", "training"]) {
      addExport(element(`${name}-head`), {
        label: name, name: () => name, plot: element(`${name}-plot`), table: () => simulator.tables[name],
      });
    }
  }

  async start() {
    const watch = setInterval(() => showProgress().catch(() => {}), PROGRESS_PERIOD);
    this.catalogue = await fetchCatalogue().finally(() => clearInterval(watch));
    const { datasets, errors } = this.catalogue;
    for (const { error } of errors) this.report(new RequestError(error));
    for (const dataset of datasets) {
      dataset.isOneOfSeveral = datasets.filter(({ kind }) => kind === dataset.kind).length > 1;
    }
    this.catalogue.analyses = this.catalogue.analyses
      .filter((analysis) => Object.keys(analysis.coordinate_sets).length > 0);
    this.showSummary();
    const trust = this.fetchTrust();
    const tables = await fetchEpisodeTables(datasets.map(({ id }) => id), (error) => this.report(error));
    this.entries = datasets.filter(({ id }) => tables.has(id))
      .flatMap((dataset) => rolloutEntries(dataset, tables.get(dataset.id)));
    this.entryByName = new Map(
      this.entries.map((entry) => [`${entry.dataset.id} ${entry.episodeId}`, entry]));
    this.list.fill(datasets, this.entries);
    this.saliency.files = this.catalogue.saliency;
    for (const view of [...this.results, this.files]) view.setCatalogue(this.catalogue);
    if (this.entries.length === 0) this.showNothing();
    const opened = this.entries.length > 0 && this.guard(() => this.openFromAddress());
    // A browser asks for six things at once: columns of a million points would hold up the frame.
    if (opened) await Promise.race([opened, this.player.firstFrame]);
    this.adoptTrust(await trust);
    const embedding = this.guard(() => this.setUpEmbedding());
    Promise.race([embedding, this.scatter.firstPoints]).then(allowPlotly);
    fetchPlotlyAhead();
    // Even where nothing is to be plotted yet: the next view may ask for it.
    this.guard(loadPlotly);
    const results = this.guard(() => Promise.all(this.results.map((view) => view.redraw())));
    await Promise.all([opened, embedding, results]);
  }

  /** Of each file of trust `{dataset, sample_id, trust}`; files that cannot be read are left out. */
  async fetchTrust() {
    const files = this.catalogue.trust.filter(({ dataset }) => dataset !== null);
    const read = files.map(({ id, dataset }) => this.guard(async () =>
      ({ dataset, ...await fetchArrays(`api/trust/${id}`) })));
    return (await Promise.all(read)).filter(Boolean);
  }

  /** Trust becomes a value of each simulated rollout, as its return is. */
  adoptTrust(files) {
    for (const { dataset, sample_id: ids, trust } of files) {
      ids.data.forEach((sample, row) => {
        const entry = this.entryByName.get(`${dataset} ${sample}`);
        if (entry) entry.trust = trust.data[row];
      });
    }
  }

  /** Runs an action as `guard` does; the page is marked as ready whenever none is under way. */
  async act(action) {
    this.underWay += 1;
    delete document.body.dataset.ready;
    await this.guard(action);
    this.underWay -= 1;
    if (this.underWay === 0) document.body.dataset.ready = "true";
  }

  /** Runs an action; what goes wrong is shown in the page. */
  async guard(action) {
    try {
      return await action();
    } catch (error) {
      this.report(error);
      if (!(error instanceof RequestError)) console.error(error);
      return undefined;
    }
  }

  report(error) {
    const message = error instanceof RequestError
      ? error.message
      : `Something in this page failed: ${error.message}`;
    const shown = [...element("errors").children].map((line) => line.dataset.message);
    if (shown.includes(message)) return;
    const line = document.createElement("p");
    line.dataset.message = message;
    const close = document.createElement("button");
    close.type = "button";
    close.ariaLabel = "Dismiss";
    close.textContent = "×";
    close.addEventListener("click", () => line.remove());
    line.append(message, close);
    element("errors").append(line);
  }

  showSummary() {
    const { datasets, folders } = this.catalogue;
    const total = (kind) =>
      datasets.filter((d) => d.kind === kind).reduce((sum, d) => sum + d.num_episodes, 0);
    const games = [...new Set(datasets.map((d) => d.environment))].join(", ");
    element("summary").textContent = [
      folders.join(", "), games, `${count(total("real"))} real`, `${count(total("simulated"))} simulated rollouts`,
    ].filter(Boolean).join(" · ");
  }

  // Rollouts

  openEntry(entry, step = 0) {
    this.view.update({ data: entry.dataset.id, episode: entry.episodeId, step }, { push: true });
  }

  async openFromAddress() {
    const asked = this.view.get("data") !== undefined || this.view.get("episode") !== undefined;
    let entry = this.askedEntry();
    if (!entry) {
      if (asked) this.report(new RequestError(
        "The rollout in the address is not here; the first one is shown instead."));
      entry = this.entryInAnalysis() ?? this.list.visible[0] ?? this.entries[0];
      const step = asked ? 0 : this.view.get("step") ?? 0;
      Object.assign(this.view.values, { data: entry.dataset.id, episode: entry.episodeId, step });
    }
    await this.open(entry);
  }

  /** The first rollout in the list that the scatter shows too. */
  entryInAnalysis() {
    const shown = Object.values(this.analysis?.source_datasets ?? {});
    return this.list.visible.find(({ dataset }) => shown.includes(dataset.id));
  }

  askedEntry() {
    return this.entryByName.get(`${this.view.get("data")} ${this.view.get("episode")}`);
  }

  async open(entry) {
    const turn = ++this.opening;
    this.player.pause();
    const frames = framesOf(entry);
    const step = this.askedStep(entry);
    // What fails here fails again when the player asks, which tells the reader.
    const firstFrame = frames.load(step).catch(() => {});
    const asked = fetchArrays(`${episodePath(entry)}/steps`);
    // The list is laid out while the answers are on their way.
    this.list.select(entry);
    const steps = await asked;
    if (turn !== this.opening) return;
    steps.probabilities = softmaxRows(steps.action_logits);
    this.current = entry;
    this.player.open(entry, steps, frames);
    this.showStep();
    const openRest = () => [
      () => this.saliency.open(entry), () => this.showComponents(), () => this.traces.open(entry, steps),
    ].map((open) => this.guard(open));
    // That takes about as long as the frame is on its way; the first of all and one that is here already
    // are shown before it.
    const rest = isPlotlyRunning() && !frames.peek(step) ? openRest() : null;
    await firstFrame;
    if (turn !== this.opening) return;
    element("announcement").textContent = `Opened: ${describeRollout(entry)}`;
    this.showSample();
    if (!rest) await nextPaint();
    if (turn !== this.opening) return;
    await Promise.all([
      ...rest ?? openRest(),
      this.guard(() => this.comparison.open(entry, steps, this.entries)),
    ]);
    if (turn === this.opening) this.showStep();
  }

  /** From the saliency file, which has gradients too, or else from the analysis. */
  async showComponents() {
    const entry = this.current;
    const content = (await this.saliency.components()) ?? (await this.analysedComponents());
    if (entry !== this.current) return;
    const note = element("components-note");
    note.hidden = content?.gradient != null;
    if (!content) {
      note.replaceChildren("No analysis of hidden states holds this rollout. Make one with ",
        code(COMMANDS.analysis));
    } else if (!content.gradient) {
      note.textContent = this.saliency.choice
        ? "Choose a target of saliency, below the frame, to colour the bars by its gradient."
        : "The gradient of a target is known for samples with saliency only.";
    }
    element("bars-colour").hidden = !content?.gradient;
    await this.components.open(content);
    this.components.show(this.player.step);
    await this.probes.redraw(content?.projectionHash);
  }

  async analysedComponents() {
    const analysis = this.hiddenAnalysis;
    const sample = this.sampleInAnalysis(analysis);
    if (!sample) return null;
    const set = ["ica", "nmf"].find((name) => name in analysis.coordinate_sets);
    const path = `api/analyses/${analysis.id}/episodes/${sample.source}/${sample.episodeId}`;
    const arrays = await fetchArrays(path);
    if (arrays.step.data.length === 0) return null;
    return {
      steps: arrays.step.data, activation: arrays[set], gradient: null, length: this.current.length,
      names: Array.from({ length: arrays[set].shape[1] }, (_, component) => `${component}`), of: "",
      projectionHash: analysis.projection_hash,
    };
  }

  /** The step that the address asks for, within a rollout. */
  askedStep({ length }) {
    const asked = this.view.get("step") ?? 0;
    const step = Math.round(Math.min(Math.max(asked, 0), length - 1));
    if (step !== asked) this.view.refuse("step");
    return step;
  }

  showStep() {
    const step = this.askedStep(this.current);
    this.player.show(step);
    this.traces.show(step);
    this.scatter.show(step);
    this.components.show(step);
  }

  async follow(changed) {
    if (this.list.isConcerned(changed)) this.list.show();
    if (changed.has("data") || changed.has("episode")) await this.openFromAddress();
    else if (changed.has("step") && this.current) this.showStep();
    if (["analysis", "x", "y", "colour", "shown"].some((name) => changed.has(name))) {
      if (changed.has("analysis")) await this.chooseAnalysis();
      this.fillAxisControls();
      await this.drawScatter();
    }
    if (changed.has("lasso") && this.analysis) this.showSelection();
    if (changed.has("view")) this.tabs.show();
    if (this.files.isConcerned(changed)) this.files.redraw();
    if (changed.has("components")) await this.components.redraw();
    if (this.filter.isConcerned(changed)) await this.filter.show();
    await Promise.all(this.results.filter((view) => view.isConcerned(changed)).map((view) => view.redraw()));
    if (!this.current) return;
    if (this.saliency.isConcerned(changed)) {
      await Promise.all([this.saliency.show(), this.showComponents()]);
    }
    this.saliency.followDrawing(changed);
    if (changed.has("beside")) await this.comparison.show();
  }

  pressKey(event) {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || !this.current) return;
    if (target.closest("select, textarea, input:not([type=range]):not([type=radio])")) return;
    const isSlider = target.type === "range" && target.id !== "scrubber";
    if (isSlider || (target.type === "radio" && event.key.startsWith("Arrow"))) return;
    if (event.key === " " && target.closest("button, summary")) return;
    const actions = {
      ArrowLeft: () => this.player.moveBy(event.shiftKey ? -10 : -1),
      ArrowRight: () => this.player.moveBy(event.shiftKey ? 10 : 1),
      ArrowUp: () => this.list.move(-1),
      ArrowDown: () => this.list.move(1),
      Home: () => this.player.moveTo(0),
      End: () => this.player.moveTo(Infinity),
      " ": () => this.player.togglePlay(),
    };
    const act = actions[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  showNothing() {
    const { folders } = this.catalogue;
    showEmpty(element("traces").parentElement.querySelector(".stage"), [
      `No rollouts lie below ${folders.join(", ")}.`,
      ["Record real ones with", COMMANDS.real],
      ["and simulated ones with", COMMANDS.simulated],
      "then reload this page.",
    ]);
    for (const selector of [".controls", ".saliency", ".traces"]) {
      document.querySelector(selector).hidden = true;
    }
  }

  // Embedding

  get analysis() {
    return pickFile(this.view, "analysis", this.catalogue.analyses);
  }

  async setUpEmbedding() {
    // An exported page has no points, only the rows of its own rollouts.
    if (!this.tabs.has("states")) return;
    const { analyses } = this.catalogue;
    if (analyses.length === 0) {
      await this.filter.setRows(null);
      for (const id of ["embedding-controls", "scatter-foot"]) element(id).hidden = true;
      showEmpty(element("scatter"), [
        "No analysis of hidden states lies here yet.", ["Make it with", COMMANDS.analysis],
        "then reload this page.",
      ]);
      return;
    }
    element("analysis").replaceChildren(
      ...analyses.map(({ id, title, label }) => new Option(`${title} · ${label}`, id)));
    element("analysis-field").hidden = analyses.length < 2;
    for (const [id, name] of [["analysis", "analysis"], ["x-axis", "x"], ["y-axis", "y"],
      ["colour", "colour"], ["shown", "shown"]]) {
      element(id).addEventListener("change", ({ target }) => this.view.update({ [name]: target.value }));
    }
    const filtered = this.chooseAnalysis();
    this.fillAxisControls();
    await Promise.all([this.drawScatter(), filtered]);
  }

  chooseAnalysis() {
    element("analysis").value = this.analysis.id;
    this.scatter.setRows(this.rowsOf(this.analysis));
    this.showSample();
    // Another layout in the scatter leaves the filter's variables as they are.
    const hidden = this.hiddenAnalysis ?? this.analysis;
    if (hidden === this.filter.rows?.analysis) return undefined;
    return this.filter.setRows(this.rowsOf(hidden), this.catalogue);
  }

  /** `{rows, source}` of an analysis of hidden states with these samples and components, or null. */
  rowsFor(datasetId, projectionHash) {
    const analysis = this.catalogue.analyses.find((one) => "ica" in one.coordinate_sets &&
      one.projection_hash === projectionHash && Object.values(one.source_datasets).includes(datasetId));
    if (!analysis) return null;
    const [source] = Object.entries(analysis.source_datasets).find(([, id]) => id === datasetId);
    return { rows: this.rowsOf(analysis), source };
  }

  /** The rows of an analysis, whose columns are fetched only once. */
  rowsOf(analysis) {
    this.rowsByAnalysis ??= new Map();
    if (!this.rowsByAnalysis.has(analysis)) this.rowsByAnalysis.set(analysis, this.makeRows(analysis));
    return this.rowsByAnalysis.get(analysis);
  }

  makeRows(analysis) {
    const names = Object.values(analysis.source_datasets).filter(Boolean)
      .map((id) => this.catalogue.datasets.find((dataset) => dataset.id === id)?.action_names);
    return new AnalysisRows(analysis, names[0] ?? [], (point) => this.entryOf(point, analysis));
  }

  /** The chosen analysis where it has components of hidden states, or else the first that has. */
  get hiddenAnalysis() {
    const hasComponents = ({ coordinate_sets: sets }) => "ica" in sets || "nmf" in sets;
    return [this.analysis, ...this.catalogue.analyses].find((one) => one && hasComponents(one));
  }

  /** The axes asked for, or the first ones that the analysis has. */
  axes() {
    const choices = axisChoices(this.analysis);
    const keys = choices.map(({ key }) => key);
    const group = "embedding" in this.analysis.coordinate_sets ? "embedding" : choices[0].group;
    const defaults = choices.filter((choice) => choice.group === group).map(({ key }) => key);
    const colours = colourChoices(this.analysis).map(({ key }) => key);
    const usual = ["value", "mean_value", "cluster"].find((key) => colours.includes(key)) ?? colours[0];
    return {
      x: this.view.pick("x", keys, defaults[0]),
      y: this.view.pick("y", keys, defaults[1] ?? defaults[0]),
      colour: this.view.pick("colour", colours, usual),
      shown: this.view.pick("shown", this.analysis.source_names, ""),
    };
  }

  fillAxisControls() {
    const { x, y, colour, shown } = this.axes();
    const choices = axisChoices(this.analysis);
    for (const [id, value] of [["x-axis", x], ["y-axis", y]]) {
      element(id).replaceChildren(...groupedOptions(choices));
      element(id).value = value;
    }
    element("colour").replaceChildren(...groupedOptions(colourChoices(this.analysis)));
    element("colour").value = colour;
    element("shown").replaceChildren(
      new Option("all", ""), ...this.analysis.source_names.map((name) => new Option(name, name)));
    element("shown").value = shown;
  }

  async drawScatter() {
    await this.scatter.draw(this.axes());
    this.showSelection();
  }

  toggleLasso() {
    const button = element("lasso");
    const isActive = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(isActive));
    this.scatter.lasso.setActive(isActive);
  }

  /** Frames of steps within the lasso, spread evenly over them all. */
  showSelection() {
    const points = this.scatter.setSelection(this.view.get("lasso"));
    if (points === null && this.view.get("lasso") !== undefined) this.view.refuse("lasso");
    element("selection").hidden = points === null;
    if (points === null) return;
    const rollouts = new Set(points.map(({ source, episodeId }) => `${source} ${episodeId}`)).size;
    const stride = Math.max(1, Math.ceil(points.length / MAX_LASSO_THUMBNAILS));
    const items = points.filter((_, index) => index % stride === 0).flatMap((point) => {
      const entry = this.entryOf(point);
      return entry ? [{ entry, step: point.step, caption: `${point.colour} ${point.value}` }] : [];
    });
    element("selection-count").textContent =
      `${plural(points.length, "step")} of ${plural(rollouts, "rollout")} inside` +
      (stride > 1 ? `; ${items.length} of them:` : "");
    this.lassoed.show(items);
  }

  showSample() {
    this.scatter.setSample(this.sampleInAnalysis());
  }

  /** The open rollout as an analysis names it, or null when it is not part of it. */
  sampleInAnalysis(analysis = this.analysis) {
    if (!this.current || !analysis) return null;
    const match = Object.entries(analysis.source_datasets)
      .find(([, id]) => id === this.current.dataset.id);
    return match ? { source: match[0], episodeId: this.current.episodeId } : null;
  }

  entryOf({ source, episodeId }, analysis = this.analysis) {
    return this.entryByName.get(`${analysis.source_datasets[source]} ${episodeId}`);
  }

  openPoint(point) {
    const entry = this.entryOf(point);
    if (entry) this.openEntry(entry, point.step);
    else {
      this.report(new RequestError(
        `The ${point.source} rollout ${point.episodeId} of this point is not among the datasets here.`));
    }
  }

  showHover(point, event) {
    const tip = element("tip");
    clearTimeout(this.hoverTimer);
    this.hovered = point;
    tip.hidden = !point;
    if (!point) return;
    tip.querySelector("p").textContent = `${point.source} ${point.episodeId}, step ${point.step}`;
    tip.querySelector("p + p").textContent = `${point.colour} ${point.value}`;
    const canvas = tip.querySelector("canvas");
    const entry = this.entryOf(point);
    // Its place is kept, so that the tip stays where it is when the frame comes.
    canvas.hidden = !entry;
    canvas.style.visibility = "hidden";
    placeBeside(tip, event);
    if (entry) this.hoverTimer = setTimeout(() => this.drawHoverFrame(entry, point, event), 80);
  }

  async drawHoverFrame(entry, point, event) {
    const path = `${episodePath(entry)}/frames?start=${point.step}&stop=${point.step + 1}`;
    // A frame that cannot be had stays away; opening its rollout says why.
    const arrays = await fetchArrays(path).catch(() => null);
    // Answers may come in another order: the frame of a point left long ago belongs to no other.
    if (!arrays || this.hovered !== point) return;
    const { frames } = arrays;
    const [, height, width, channels] = frames.shape;
    const tip = element("tip");
    const canvas = tip.querySelector("canvas");
    Object.assign(canvas, { width, height });
    canvas.style.visibility = "";
    placeBeside(tip, event);
    canvas.getContext("2d").putImageData(toImage({ data: frames.data, height, width, channels }), 0, 0);
  }
}

/** Tells how far the server is: to open hundreds of files for the first time takes it a while. */
async function showProgress() {
  const { found, opened } = await fetchProgress();
  if (!page.catalogue) element("summary").textContent = `Reading files: ${count(opened)} of ${count(found)} …`;
}

/** Puts a box beside the pointer, on the side where the window has room for it. */
function placeBeside(box, { clientX, clientY }) {
  const start = (pointer, size, room) =>
    (pointer + POINTER_GAP + size > room ? Math.max(0, pointer - POINTER_GAP - size) : pointer + POINTER_GAP);
  const x = start(clientX, box.offsetWidth, window.innerWidth);
  const y = start(clientY, box.offsetHeight, window.innerHeight);
  box.style.transform = `translate(${x}px, ${y}px)`;
}

/** Resolves once the browser has painted what the page shows now, or at once in a hidden page. */
function nextPaint() {
  if (document.hidden) return Promise.resolve();
  return new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); });
}

function groupedOptions(choices) {
  const names = { pca: "Principal components", ica: "Independent components", nmf: "NMF factors",
    embedding: "Embedding", step: "Of each step" };
  const groups = new Map();
  for (const { key, label, group } of choices) {
    if (!groups.has(group)) {
      groups.set(group, Object.assign(document.createElement("optgroup"), { label: names[group] }));
    }
    groups.get(group).append(new Option(label, key));
  }
  return [...groups.values()];
}

const page = new Page();
// For the console and the tests.
window.dreamscope = page;
page.act(() => page.start());
