// The filter: conditions on steps that rollouts must meet, and the extreme steps of a variable.

import { CATEGORICAL, axisChoices, columnChoices, presentValues } from "./analysis_rows.js";
import {
  ConditionError, OPERATORS, extremeRows, formatConditions, matchEpisodes, parseConditions, rowsMeeting,
} from "./conditions.js";
import { fillSelect, offerFiles } from "./controls.js";
import { Gallery } from "./gallery.js";
import { GradientRows, fittingFiles, isOfOtherProjection } from "./gradient_rows.js";
import { COMMANDS, code, showEmpty } from "./notices.js";
import { choiceIn, pathOptions } from "./saliency.js";
import { targetName } from "./saliency_view.js";
import { count, number, plural } from "./words.js";

const MAX_THUMBNAILS = 48;
const GRADIENT = /^gradient\.(\d+)$/;
const GRADIENT_CHOICES = {
  "gradient-file": "saliency", "gradient-target": "target", "gradient-step": "at", "gradient-path": "path",
};
const ENDS = ["high", "middle", "low"];
const element = (id) => document.getElementById(id);

/**
 * Reads and writes `filter` (text), `scope` ("anywhere" or nothing) and `extreme` ("ica.3.high") in
 * `view`, and, for conditions on the gradient of a target, `saliency` (file), `target`, `at` and `path`.
 *
 * `entryOf({source, episodeId})` is the rollout of a row, `onMatches(map)` hears which rollouts
 * match, as a map from entry to step, or null when there is no condition;
 * `numRollouts()` counts all rollouts that the page lists.
 */
export class FilterView {
  constructor(view, { entryOf, numRollouts, onMatches, onOpen }) {
    this.view = view;
    this.entryOf = entryOf;
    this.numRollouts = numRollouts;
    this.onMatches = onMatches;
    this.gallery = new Gallery(element("filter-gallery"), onOpen);
    this.rows = null;
    this.gradients = [];
    this.turn = 0;
    for (const [id, name] of Object.entries(GRADIENT_CHOICES)) {
      element(id).addEventListener("change", ({ target }) => this.view.update({ [name]: target.value }));
    }
    element("filter-text").addEventListener("change", ({ target }) =>
      this.view.update({ filter: target.value, extreme: undefined }));
    element("filter-scope").addEventListener("change", ({ target }) =>
      this.view.update({ scope: target.value || undefined }));
    element("condition-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#addCondition();
    });
    element("condition-variable").addEventListener("change", () => {
      this.#showGradientChoice();
      this.#offerValues();
    });
    element("extreme-variable").addEventListener("change", () => this.#showGradientChoice());
    element("clear-filter").addEventListener("click", () =>
      this.view.update({ filter: undefined, extreme: undefined }));
    for (const button of document.querySelectorAll("[data-extreme]")) {
      button.addEventListener("click", () => this.view.update({
        extreme: `${element("extreme-variable").value}.${button.dataset.extreme}`,
      }));
    }
  }

  /** Whether a change of the address concerns this view. */
  isConcerned(changed) {
    return ["filter", "scope", "extreme", ...Object.values(GRADIENT_CHOICES)]
      .some((name) => changed.has(name));
  }

  /** Filters the rows of another analysis, null when there is none; the rest are lists of files. */
  async setRows(rows, { saliency = [], trust = [] } = {}) {
    this.rows = rows;
    const files = rows ? fittingFiles(saliency, rows.analysis) : [];
    this.gradients = files.map((file) => new GradientRows(rows, file));
    const why = rows && isOfOtherProjection(saliency, rows.analysis)
      ? "Gradients here are of the components of another projection than this analysis has"
      : "Gradients of components are not known for these rollouts";
    showMissing([
      ...(files.length ? [] : [[`${why}: compute them with`, COMMANDS.saliency]]),
      ...(trust.length ? [] : [["Trust in samples is not known: measure it with", COMMANDS.trust]]),
    ]);
    if (!rows) {
      showEmpty(element("view-filter"), [
        "Filters look at the steps of an analysis of hidden states.", ["Make it with", COMMANDS.analysis],
        "then reload this page.",
      ]);
      return;
    }
    const columns = columnChoices(rows.analysis);
    const axes = axisChoices(rows.analysis);
    const gradients = Array.from({ length: files[0]?.num_components ?? 0 }, (_, component) => ({
      key: `gradient.${component}`, label: `gradient, component ${component}`, group: "gradient",
    }));
    this.variables = [...axes, ...columns, ...gradients].map(({ key }) => key);
    element("condition-variable").replaceChildren(...[...columns, ...axes, ...gradients].map(option));
    element("condition-operator").replaceChildren(...OPERATORS.map((sign) => new Option(sign, sign)));
    const ordered = columns.filter(({ key }) => !CATEGORICAL.has(key));
    const first = axes.filter(({ group }) => group === "ica" || group === "nmf");
    element("extreme-variable").replaceChildren(
      ...[...first, ...ordered, ...axes.filter((choice) => !first.includes(choice)), ...gradients]
        .map(option));
    await this.#offerValues();
    await this.show();
  }

  /** Applies what the address asks for. */
  async show() {
    if (!this.rows) return;
    const turn = ++this.turn;
    element("filter-scope").value = this.view.pick("scope", ["anywhere"], "");
    const text = this.view.get("filter") ?? "";
    element("filter-text").value = text;
    const conditions = this.#parse(text);
    if (!conditions) return;
    this.conditions = conditions;
    const extreme = this.#extreme();
    if (extreme) element("extreme-variable").value = extreme.variable;
    this.#showGradientChoice();
    this.#showConditions(conditions);
    const matches = conditions.length ? await this.#matches(conditions) : null;
    if (turn !== this.turn) return;
    const items = extreme ? await this.#extremeItems(extreme) : matches?.items ?? [];
    if (turn !== this.turn) return;
    this.onMatches(matches?.steps ?? null);
    this.#report(matches, extreme, items);
  }

  /** Of the file that the address names where it fits the analysis, or else of the first that does. */
  get #chosenGradients() {
    const asked = this.view.get("saliency");
    return this.gradients.find(({ file }) => file.id === asked) ?? this.gradients[0];
  }

  /** Which gradient conditions are about: as in the address, of the first target where it names none. */
  get #gradientChoice() {
    const { file } = this.#chosenGradients;
    const choice = choiceIn(file, this.view);
    return { ...choice, target: choice.target ?? file.targets[0] };
  }

  /** Shown where something is asked of a gradient: a condition, one being made, an extreme. */
  #showGradientChoice() {
    const asked = [
      ...(this.conditions ?? []).map(({ variable }) => variable), this.#extreme()?.variable,
      element("condition-variable").value, element("extreme-variable").value,
    ];
    const isNeeded = this.gradients.length > 0 && asked.some((variable) => GRADIENT.test(variable ?? ""));
    element("gradient-choice").hidden = !isNeeded;
    if (!isNeeded) return;
    const { file } = this.#chosenGradients;
    const { targets, target_steps: steps, environment_gradients: labels } = file;
    const { target, at, path } = this.#gradientChoice;
    offerFiles("gradient-file", this.gradients.map((one) => one.file), file);
    fillSelect("gradient-target", targets.map((name) => [name, targetName(name)]), target);
    fillSelect("gradient-step", steps.map((step) => [step, step]), at);
    fillSelect("gradient-path", pathOptions(labels), path);
  }

  #column(key) {
    const [, component] = GRADIENT.exec(key) ?? [];
    return component === undefined
      ? this.rows.column(key) : this.#chosenGradients.column(Number(component), this.#gradientChoice);
  }

  #parse(text) {
    const message = element("filter-error");
    const box = element("filter-text");
    try {
      const conditions = parseConditions(
        text, this.variables, (variable, name) => this.rows.categoryCode(variable, name));
      message.textContent = "";
      box.removeAttribute("aria-invalid");
      return conditions;
    } catch (error) {
      if (!(error instanceof ConditionError)) throw error;
      message.textContent = error.message;
      box.setAttribute("aria-invalid", "true");
      return null;
    }
  }

  async #matches(conditions) {
    const { rows } = this;
    const [columns, steps, groups] = await Promise.all([
      Promise.all(conditions.map(({ variable }) => this.#column(variable))),
      rows.column("step"), rows.groups(),
    ]);
    const masks = conditions.map((condition, index) => rowsMeeting(condition, columns[index]));
    const isSameStep = this.view.get("scope") !== "anywhere";
    const found = matchEpisodes(masks, steps, groups, isSameStep).filter((row) => row >= 0);
    const items = await this.#items(Array.from(found), conditions.map(({ variable }) => variable));
    return {
      numMatching: found.length, numEpisodes: groups.firstRows.length,
      numKnown: (await this.#items(groups.firstRows, [])).length,
      items, steps: new Map(items.map(({ entry, step }) => [entry, step])),
    };
  }

  #extreme() {
    const known = this.variables.flatMap((variable) => ENDS.map((end) => `${variable}.${end}`));
    const chosen = this.view.pick("extreme", known, null);
    if (chosen === null) return null;
    const [, variable, end] = /^(.+)\.(\w+)$/.exec(chosen);
    return { variable, end };
  }

  async #extremeItems({ variable, end }) {
    const [values, groups] = await Promise.all([this.#column(variable), this.rows.groups()]);
    return this.#items(extremeRows(values, groups, end, MAX_THUMBNAILS), [variable]);
  }

  /** Steps for the gallery; rows whose dataset is not here are left out. */
  async #items(rowNumbers, variables) {
    const { rows } = this;
    const [sources, episodes, steps, ...columns] = await Promise.all(
      ["source", "episode_id", "step", ...new Set(variables)].map((key) => this.#column(key)));
    const names = [...new Set(variables)];
    return rowNumbers.flatMap((row) => {
      const source = rows.analysis.source_names[sources[row]];
      const entry = this.entryOf({ source, episodeId: episodes[row] });
      const value = (name, index) =>
        CATEGORICAL.has(name) ? rows.categoryName(name, columns[index][row]) : number(columns[index][row], 2);
      const caption = names.map((name, index) => `${name} ${value(name, index)}`).join(", ");
      return entry ? [{ entry, step: steps[row], caption }] : [];
    });
  }

  #report(matches, extreme, items) {
    const parts = [];
    if (matches) parts.push(countMatches(matches, this.numRollouts()));
    else parts.push("No condition: every rollout is listed.");
    if (extreme) {
      const ends = { high: "Highest", low: "Lowest", middle: "Nearest to the median" };
      parts.push(`${ends[extreme.end]} ${extreme.variable}, the most extreme step of each rollout:`);
    } else if (items.length > MAX_THUMBNAILS) parts.push(`The first ${MAX_THUMBNAILS}:`);
    element("filter-count").textContent = parts.join(" ");
    this.gallery.show(items.slice(0, MAX_THUMBNAILS));
  }

  #showConditions(conditions) {
    element("conditions").replaceChildren(...conditions.map((condition, index) => {
      const line = document.createElement("li");
      const remove = document.createElement("button");
      const text = formatConditions([condition]);
      remove.type = "button";
      remove.textContent = "×";
      remove.ariaLabel = `Remove ${text}`;
      remove.addEventListener("click", () =>
        this.#setConditions(conditions.filter((_, other) => other !== index)));
      line.append(text, remove);
      return line;
    }));
  }

  #addCondition() {
    const text = element("condition-value").value.trim();
    if (text === "") return;
    const [variable, operator] = ["condition-variable", "condition-operator"].map((id) => element(id).value);
    this.#setConditions([...(this.conditions ?? []), { variable, operator, text }]);
  }

  #setConditions(conditions) {
    this.view.update({ filter: formatConditions(conditions) || undefined, extreme: undefined });
  }

  /** Tells which values a variable takes, so that a bound need not be guessed. */
  async #offerValues() {
    const { rows } = this;
    const variable = element("condition-variable").value;
    const values = await this.#column(variable);
    if (rows !== this.rows || variable !== element("condition-variable").value) return;
    const isNamed = CATEGORICAL.has(variable);
    const present = isNamed ? presentValues(values) : [];
    element("condition-values").replaceChildren(
      ...present.map((value) => rows.categoryName(variable, value)).map((name) => new Option(name, name)));
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    element("condition-value").placeholder = isNamed
      ? rows.categoryName(variable, present[0])
      : low <= high ? `${number(low, 2)} … ${number(high, 2)}` : "not known here";
    element("condition-operator").value = isNamed ? "=" : ">";
  }
}

/** How many rollouts match, and of which: those of the list that the analysis does not hold cannot. */
function countMatches({ numMatching, numEpisodes, numKnown }, numListed) {
  const rest = numListed - numKnown;
  const others = rest > 0
    ? ` The other ${plural(rest, "rollout")} of the list ${rest === 1 ? "is" : "are"} not in this analysis.` : "";
  return `${count(numMatching)} of ${plural(numEpisodes, "analysed rollout")} match.${others}`;
}

/** Lines `[text, command]` on what there could be conditions on. */
function showMissing(lines) {
  element("filter-missing").replaceChildren(...lines.map(([text, command]) => {
    const line = document.createElement("p");
    line.append(`${text} `, code(command));
    return line;
  }));
}

const option = ({ key, label, group }) =>
  new Option(group === "step" ? label : `${label} (${key})`, key);
