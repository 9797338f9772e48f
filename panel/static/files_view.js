// Where every file comes from: hashes, commands, code, and which of the inputs lie here too.

import { fetchJson } from "./api.js";
import { code } from "./notices.js";
import { count, plural } from "./words.js";

const KINDS = {
  datasets: "rollouts", analyses: "components", cross: "cross-correlation", consistency: "statements",
  effects: "intervention", probes: "probes", trust: "trust", saliency: "saliency",
  fidelity: "fidelity", training: "training log", cards: "description",
  supplements: "where it comes from",
};
const MAX_OPEN = 24;
const element = (id) => document.getElementById(id);

/**
 * Lists what the catalogue has, by folder; what a file says of its making is fetched when it is
 * unfolded. Reads and writes `sought` in `view`: words that a file's folder, name or kind must hold.
 */
export class FilesView {
  constructor(view, guard) {
    this.view = view;
    this.guard = guard;
    this.items = [];
    element("sought").addEventListener("input", ({ target }) =>
      this.view.update({ sought: target.value || undefined }));
  }

  /** Whether a change of the address concerns this view. */
  isConcerned(changed) {
    return changed.has("sought");
  }

  setCatalogue(catalogue) {
    this.items = Object.entries(KINDS).flatMap(([kind, name]) =>
      (catalogue[kind] ?? []).map((item) => ({ ...item, kindName: item.title ?? name })));
    this.redraw();
  }

  /** Lists what the address seeks. */
  redraw() {
    const sought = this.view.get("sought") ?? "";
    if (element("sought").value !== sought) element("sought").value = sought;
    const words = sought.toLowerCase().split(/\s+/).filter(Boolean);
    const found = this.items.filter(({ label, kindName }) =>
      words.every((word) => `${label} ${kindName}`.toLowerCase().includes(word)));
    element("files-count").textContent = words.length
      ? `${count(found.length)} of ${plural(this.items.length, "file")} match.` : plural(found.length, "file");
    const isOpen = words.length > 0 || found.length <= MAX_OPEN;
    element("files").replaceChildren(...this.#contentsOf(folderTree(found), isOpen));
    for (const outermost of element("files").querySelectorAll(":scope > .folder")) outermost.open = true;
  }

  #contentsOf({ items, folders }, isOpen) {
    return [
      ...items.map((item) => this.#fold(item)),
      ...[...folders].map(([name, folder]) => this.#folder(name, folder, isOpen)),
    ];
  }

  #folder(name, folder, isOpen) {
    const fold = Object.assign(document.createElement("details"), { className: "folder", open: isOpen });
    const box = Object.assign(document.createElement("div"), { className: "folds" });
    box.append(...this.#contentsOf(folder, isOpen));
    fold.append(summaryOf(`${name}/`, plural(folder.size, "file")), box);
    return fold;
  }

  #fold(item) {
    const fold = document.createElement("details");
    fold.append(summaryOf(item.name, item.kindName));
    fold.title = item.label;
    fold.dataset.item = item.id;
    fold.addEventListener("toggle", () => this.guard(() => this.#fill(fold, item)), { once: true });
    return fold;
  }

  async #fill(fold, item) {
    const { hash, provenance } = await fetchJson(`api/items/${item.id}/provenance`);
    const list = document.createElement("dl");
    list.className = "plain-list";
    const add = (term, ...content) => {
      const definition = document.createElement("dd");
      definition.append(...content);
      list.append(Object.assign(document.createElement("dt"), { textContent: term }), definition);
    };
    add("hash", hash ? code(hash) : "not computed for a file this large");
    if (provenance.command) add("command", code(["python", ...[provenance.command].flat()].join(" ")));
    if (provenance.created_utc) add("made", provenance.created_utc);
    if (provenance.code_version) add("code", code(provenance.code_version));
    if (provenance.seed !== undefined) add("seed", String(provenance.seed));
    for (const [role, input] of Object.entries(provenance.inputs ?? {})) {
      const known = this.items.find((other) => other.hash === input);
      add(`from ${role.replaceAll("_", " ")}`, known ? `${known.label} ` : "", code(String(input)));
    }
    if (provenance.packages) {
      add("packages", Object.entries(provenance.packages).map((pair) => pair.join(" ")).join(", "));
    }
    if (provenance.config) add("configuration", configOf(provenance.config));
    if (!provenance.command) add("command", "The file does not say how it was made.");
    fold.append(list);
  }
}

/**
 * Items by folder: `{items, folders, size}`, folders by name, where one that holds nothing but another
 * is named with it. An item's `name` is its place in its folder.
 */
function folderTree(items) {
  const root = { items: [], folders: new Map(), size: 0 };
  for (const item of items) {
    const path = item.label.split("/");
    let folder = root;
    for (const name of path.slice(0, -1)) {
      if (!folder.folders.has(name)) folder.folders.set(name, { items: [], folders: new Map(), size: 0 });
      folder = folder.folders.get(name);
      folder.size += 1;
    }
    folder.items.push({ ...item, name: path.at(-1) });
  }
  return joined(root);
}

function joined(folder) {
  const folders = new Map([...folder.folders].map(([name, inner]) => {
    const whole = joined(inner);
    const [only] = whole.folders;
    const isPassage = whole.items.length === 0 && whole.folders.size === 1;
    return isPassage ? [`${name}/${only[0]}`, only[1]] : [name, whole];
  }));
  return { ...folder, folders };
}

function summaryOf(name, note) {
  const summary = document.createElement("summary");
  const text = Object.assign(document.createElement("span"), { className: "name", textContent: name });
  const quiet = Object.assign(document.createElement("span"), { className: "quiet", textContent: note });
  summary.append(text, quiet);
  return summary;
}

function configOf(config) {
  const text = document.createElement("pre");
  text.textContent = JSON.stringify(config, null, 1);
  return text;
}
