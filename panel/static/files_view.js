// Where every file comes from: hashes, commands, code, and which of the inputs lie here too.

import { fetchJson } from "./api.js";
import { code } from "./notices.js";

const KINDS = {
  datasets: "rollouts", analyses: "components", cross: "cross-correlation", consistency: "statements",
  effects: "intervention", probes: "probes", trust: "trust", saliency: "saliency",
  fidelity: "fidelity", training: "training log", cards: "description",
  supplements: "where it comes from",
};
const element = (id) => document.getElementById(id);

/** Lists what the catalogue has; what a file says of its making is fetched when it is unfolded. */
export class FilesView {
  constructor(guard) {
    this.guard = guard;
  }

  setCatalogue(catalogue) {
    this.items = Object.entries(KINDS).flatMap(([kind, name]) =>
      (catalogue[kind] ?? []).map((item) => ({ ...item, kindName: item.title ?? name })));
    element("files").replaceChildren(...this.items.map((item) => this.#fold(item)));
  }

  #fold(item) {
    const fold = document.createElement("details");
    const summary = document.createElement("summary");
    const kind = Object.assign(document.createElement("span"), {
      className: "quiet", textContent: item.kindName,
    });
    summary.append(item.label, kind);
    fold.append(summary);
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

function configOf(config) {
  const text = document.createElement("pre");
  text.textContent = JSON.stringify(config, null, 1);
  return text;
}
