// The list of rollouts: filtered, sorted, and drawn only where it is in sight.

import { count, number, plural, textScale } from "./words.js";

const ROW_HEIGHT = 30;
// A row with the name of its dataset in a second line, in heights of one without.
const NAMED_ROW = 1.5;
const rowHeight = () => Math.round(ROW_HEIGHT * textScale());
// Fields of the form, and what each has where the address names nothing.
const CHOICES = { kind: "all", dataset: "", complete: "any" };
const BOUNDS = ["min-length", "max-length", "min-return", "max-return"];
const DESCENDING = "-";
const OUTCOMES = {
  complete: ["✓", "level complete"],
  ended: ["✕", "ended, level not complete"],
  truncated: ["T", "stopped by the time limit"],
  cut: ["✂", "cut by the recorder"],
  simulated: ["", "simulated"],
};
const SORT_KEYS = {
  episode: (entry) => entry.episodeId,
  length: (entry) => entry.length,
  return: (entry) => entry.return,
  outcome: (entry) => Object.keys(OUTCOMES).indexOf(entry.outcome),
};

/** One entry per rollout of a dataset, from its episode table. */
export function rolloutEntries(dataset, table) {
  const column = (name) => table[name]?.data;
  const ids = column("episode_id");
  return Array.from(ids, (episodeId, index) => ({
    dataset,
    episodeId,
    length: column("length")[index],
    return: column("return")[index],
    levelSeed: column("level_seed")?.[index] ?? -1,
    levelComplete: Boolean(column("level_complete")?.[index]),
    outcome: outcome(dataset, column, index),
    initialisation: dataset.initialisations[column("initialisation")[index]] ?? "unknown",
    sourceEpisodeId: column("source_episode_id")?.[index] ?? -1,
    sourceRow: column("source_row")?.[index] ?? -1,
    twinOf: column("twin_of")?.[index] ?? -1,
    trust: NaN,
  }));
}

function outcome(dataset, column, index) {
  if (dataset.kind === "simulated") return "simulated";
  for (const [field, name] of [["level_complete", "complete"], ["truncated", "truncated"], ["cut", "cut"]]) {
    if (column(field)?.[index]) return name;
  }
  return "ended";
}

/** Whether an entry meets the conditions of the filter form. */
export function matches(entry, conditions) {
  return (
    (conditions.kind === "all" || entry.dataset.kind === conditions.kind) &&
    (!conditions.dataset || entry.dataset.id === conditions.dataset) &&
    inRange(entry.length, conditions["min-length"], conditions["max-length"]) &&
    inRange(entry.return, conditions["min-return"], conditions["max-return"]) &&
    (conditions.complete === "any" || entry.levelComplete === (conditions.complete === "yes"))
  );
}

const inRange = (value, low, high) =>
  (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));

/**
 * Reads and writes the fields of the form and `sort` ("return", or "-return" from the highest) in
 * `view`; calls `onOpen(entry, step)` when a rollout is chosen.
 */
export class RolloutList {
  constructor(view, onOpen) {
    this.view = view;
    this.onOpen = onOpen;
    this.form = document.getElementById("filters");
    this.box = document.getElementById("rollouts");
    this.spacer = this.box.querySelector(".spacer");
    this.counter = document.getElementById("list-count");
    this.sortButtons = [...document.querySelectorAll("[data-sort]")];
    this.sort = { key: "episode", descending: false };
    this.entries = [];
    this.visible = [];
    this.lines = [];
    this.names = new Map();
    this.current = null;
    this.matches = null;
    this.form.addEventListener("input", ({ target }) => this.#adopt(target));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.box.addEventListener("scroll", () => {
      if (this.#topLine() !== this.top) this.#draw();
    });
    this.box.addEventListener("click", (event) => this.#click(event));
    for (const button of this.sortButtons) {
      button.addEventListener("click", () => this.#sortBy(button.dataset.sort));
    }
    new ResizeObserver(() => this.#draw()).observe(this.box);
  }

  /** Shows the rollouts of some datasets. */
  fill(datasets, entries) {
    this.order = new Map(datasets.map(({ id }, position) => [id, position]));
    this.names = shortNames(datasets);
    this.entries = entries.toSorted((a, b) =>
      this.order.get(a.dataset.id) - this.order.get(b.dataset.id) || a.episodeId - b.episodeId);
    const select = this.form.elements.dataset;
    select.replaceChildren(new Option("all", ""), ...datasets.map((d) => new Option(d.label, d.id)));
    document.getElementById("dataset-field").hidden = datasets.length < 3;
    this.show();
  }

  /** Whether a change of the address concerns the list. */
  isConcerned(changed) {
    return [...Object.keys(CHOICES), ...BOUNDS, "sort"].some((name) => changed.has(name));
  }

  /** Filters and sorts as the address asks. */
  show() {
    if (this.order === undefined) return;
    const { elements } = this.form;
    for (const [name, usual] of Object.entries(CHOICES)) {
      const known = [...(elements[name].options ?? elements[name])].map(({ value }) => value);
      elements[name].value = this.view.pick(name, known, usual);
    }
    for (const name of BOUNDS) {
      const asked = this.view.get(name) ?? "";
      // A number half typed has no value yet, and is left alone.
      if (elements[name].value !== asked) elements[name].value = asked;
      if (elements[name].value !== asked) this.view.refuse(name);
    }
    const keys = Object.keys(SORT_KEYS);
    const asked = this.view.pick("sort", [...keys, ...keys.map((key) => DESCENDING + key)], keys[0]);
    this.sort = { key: asked.replace(DESCENDING, ""), descending: asked.startsWith(DESCENDING) };
    this.refresh();
  }

  /** Leaves only some rollouts, a map from entry to the step it opens at; null leaves all. */
  setMatches(matches) {
    if (matches === null && this.matches === null) return;
    this.matches = matches;
    this.refresh();
  }

  /** Applies filters and order anew. */
  refresh() {
    const conditions = Object.fromEntries(new FormData(this.form));
    const key = SORT_KEYS[this.sort.key];
    const sign = this.sort.descending ? -1 : 1;
    this.visible = this.entries.filter((entry) =>
      matches(entry, conditions) && (this.matches === null || this.matches.has(entry)));
    this.isGrouped = this.sort.key === "episode";
    if (!this.isGrouped) this.visible.sort((a, b) => sign * (key(a) - key(b)));
    else if (this.sort.descending) {
      this.visible.sort((a, b) => this.order.get(a.dataset.id) - this.order.get(b.dataset.id) || key(b) - key(a));
    }
    this.#layOut();
    this.#bringIntoSight();
    const all = this.entries.length;
    this.counter.textContent =
      this.visible.length === all ? plural(all, "rollout") : `${count(this.visible.length)} of ${count(all)} shown`;
    for (const button of this.sortButtons) {
      const active = button.dataset.sort === this.sort.key;
      button.classList.toggle("active", active);
      button.dataset.order = active ? (this.sort.descending ? "↓" : "↑") : "";
      button.setAttribute("aria-pressed", String(active));
    }
    this.#draw();
  }

  /** Marks the rollout that is open, and brings it into sight. */
  select(entry) {
    this.current = entry;
    this.#bringIntoSight();
    this.#draw();
  }

  #bringIntoSight() {
    const line = this.lines.findIndex((one) => one.entry === this.current);
    if (this.current && line >= 0) {
      const height = this.#lineHeight();
      const top = line * height;
      const { scrollTop, clientHeight } = this.box;
      // The heading of the group lies over the first line.
      const covered = this.isNamed && this.isGrouped ? height : 0;
      if (top < scrollTop + covered || top + height > scrollTop + clientHeight) {
        // The list may have been shorter until now.
        this.spacer.style.height = `${this.lines.length * height}px`;
        this.box.scrollTop = top - clientHeight / 2;
      }
    }
  }

  /** Opens the rollout before (−1) or after (+1) the current one. */
  move(offset) {
    const position = this.visible.indexOf(this.current);
    const next = this.visible[position < 0 ? 0 : position + offset];
    if (next) this.#open(next);
  }

  #open(entry) {
    this.onOpen(entry, this.matches?.get(entry) ?? 0);
  }

  #sortBy(key) {
    const isDescending = this.sort.key === key && !this.sort.descending;
    this.view.update({ sort: isDescending ? DESCENDING + key : key });
  }

  #adopt({ name, value }) {
    const isUsual = value === (CHOICES[name] ?? "");
    this.view.update({ [name]: isUsual ? undefined : value });
  }

  #click(event) {
    const row = event.target.closest(".row");
    if (row) this.#open(this.visible[Number(row.dataset.position)]);
  }

  /**
   * Lines `{entry, position}` and, where the rollouts of several datasets stand in groups, `{dataset}`
   * above each group; sorted otherwise each line names its dataset.
   */
  #layOut() {
    const { visible } = this;
    this.isNamed = visible.some(({ dataset }) => dataset !== visible[0].dataset);
    const hasHeadings = this.isNamed && this.isGrouped;
    this.lines = visible.flatMap((entry, position) => {
      const isFirst = entry.dataset !== visible[position - 1]?.dataset;
      return hasHeadings && isFirst ? [{ dataset: entry.dataset }, { entry, position }] : [{ entry, position }];
    });
  }

  #lineHeight() {
    return rowHeight() * (this.isNamed && !this.isGrouped ? NAMED_ROW : 1);
  }

  #topLine() {
    return Math.floor(this.box.scrollTop / this.#lineHeight());
  }

  #draw() {
    const height = this.#lineHeight();
    this.top = this.#topLine();
    const first = Math.max(0, this.top - 5);
    const last = first + Math.ceil(this.box.clientHeight / height) + 10;
    this.spacer.style.height = `${this.lines.length * height}px`;
    const rows = this.lines.slice(first, last).map((line, offset) =>
      place(line.entry ? this.#row(line) : this.#heading(line.dataset), (first + offset) * height, height));
    const top = this.lines[this.top];
    if (this.isNamed && this.isGrouped && top) rows.unshift(this.#stayingHeading(top));
    if (this.visible.length === 0) rows.push(emptyNotice(this.entries.length));
    // A list box must have options.
    this.box.role = this.visible.length ? "listbox" : "group";
    this.spacer.replaceChildren(...rows);
    const id = rows.find((row) => row.ariaSelected === "true")?.id;
    if (id) this.box.setAttribute("aria-activedescendant", id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  /** The name of a dataset above its rollouts; each of these says it to a screen reader. */
  #heading(dataset) {
    const heading = cell(this.names.get(dataset.id), "group");
    heading.title = dataset.label;
    heading.setAttribute("aria-hidden", "true");
    return heading;
  }

  /** The heading of the group that the first line in sight belongs to. */
  #stayingHeading({ dataset, entry }) {
    const heading = this.#heading(dataset ?? entry.dataset);
    heading.classList.add("staying");
    heading.style.height = `${this.#lineHeight()}px`;
    return heading;
  }

  #row({ entry, position }) {
    const [sign, meaning] = OUTCOMES[entry.outcome];
    const row = document.createElement("div");
    row.className = "row";
    row.id = `rollout-${position}`;
    row.role = "option";
    row.dataset.position = position;
    row.ariaSelected = String(entry === this.current);
    row.setAttribute("aria-setsize", this.visible.length);
    row.setAttribute("aria-posinset", position + 1);
    const name = this.isNamed ? `, ${this.names.get(entry.dataset.id)}` : "";
    row.ariaLabel = `${entry.dataset.kind} ${entry.episodeId}${name}, ${entry.length} steps, return ${number(entry.return, 2)}, ${meaning}`;
    row.title = describeRollout(entry);
    row.append(
      cell("", `dot ${entry.dataset.kind}`),
      cell(entry.episodeId, "episode"),
      cell(count(entry.length), "numeric"),
      cell(number(entry.return, 1), "numeric"),
      cell(sign, `outcome ${entry.outcome}`),
    );
    if (this.isNamed && !this.isGrouped) row.append(cell(this.names.get(entry.dataset.id), "dataset"));
    return row;
  }
}

/** A sentence on where a rollout comes from. */
export function describeRollout(entry) {
  const parts = [];
  if (entry.dataset.kind === "real") {
    parts.push(`Real episode ${entry.episodeId}`);
    if (entry.sourceEpisodeId >= 0) {
      parts.push(`branches from episode ${entry.sourceEpisodeId}, row ${entry.sourceRow}`);
    }
    if (entry.levelSeed >= 0) parts.push(`level ${entry.levelSeed}`);
    parts.push(OUTCOMES[entry.outcome][1]);
  } else {
    parts.push(`Simulated sample ${entry.episodeId}`);
    if (entry.sourceEpisodeId >= 0) {
      parts.push(`from real episode ${entry.sourceEpisodeId}, row ${entry.sourceRow}`);
    } else parts.push(`${entry.initialisation} start`);
    if (entry.twinOf >= 0) parts.push(`intervened twin of ${entry.twinOf}`);
  }
  // Recordings number their episodes alike; early in the sentence, since its end may be cut off.
  if (entry.dataset.isOneOfSeveral) parts.splice(1, 0, entry.dataset.label);
  return parts.join(" · ");
}

function cell(text, className) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}

function place(element, top, height) {
  element.style.transform = `translateY(${top}px)`;
  element.style.height = `${height}px`;
  return element;
}

/**
 * Names of datasets by id, the own folder first: it tells recordings apart, the end may be cut off. The
 * folder that all have in common is left out.
 */
function shortNames(datasets) {
  const paths = datasets.map(({ label }) => label.split("/"));
  const isCommon = paths.length > 1 && paths.every((path) => path.length > 1 && path[0] === paths[0][0]);
  return new Map(datasets.map(({ id }, index) => {
    const path = paths[index].slice(isCommon ? 1 : 0);
    return [id, [path.at(-1), path.slice(0, -1).join("/")].filter(Boolean).join(" · ")];
  }));
}

function emptyNotice(total) {
  const notice = document.createElement("p");
  notice.className = "note";
  notice.textContent = total
    ? "No rollout meets all conditions. Widen a range or choose another kind."
    : "There are no rollouts yet.";
  return notice;
}
