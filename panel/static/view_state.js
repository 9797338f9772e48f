// What the page shows, kept in the part of the address after '#', so that a view can be shared.

const NUMBERS = new Set(["episode", "step", "gain", "blur", "threshold", "lag"]);

/** Dispatches `change` with the set of changed names whenever the view changes. */
export class ViewState extends EventTarget {
  constructor() {
    super();
    this.values = parse(location.hash);
    window.addEventListener("popstate", () => this.#adopt(parse(location.hash)));
    window.addEventListener("hashchange", () => this.#adopt(parse(location.hash)));
    this.pending = null;
  }

  get(name) {
    return this.values[name];
  }

  /** Sets some values; `push` makes a step in the browser's history. */
  update(values, { push = false } = {}) {
    const changed = new Set(Object.keys(values).filter((n) => values[n] !== this.values[n]));
    if (changed.size === 0) return;
    if (push) this.#write();
    Object.assign(this.values, values);
    if (push) history.pushState(null, "", this.address());
    else this.#writeSoon();
    this.dispatchEvent(new CustomEvent("change", { detail: changed }));
  }

  /** The fragment that restores this view. */
  address() {
    const given = Object.entries(this.values).filter(([, value]) => value !== undefined);
    return `#${new URLSearchParams(given)}`;
  }

  #adopt(values) {
    const names = new Set([...Object.keys(values), ...Object.keys(this.values)]);
    const changed = new Set([...names].filter((name) => values[name] !== this.values[name]));
    if (changed.size === 0) return;
    this.values = values;
    this.dispatchEvent(new CustomEvent("change", { detail: changed }));
  }

  // Browsers limit how often the address may be set; playing would exceed that.
  #writeSoon() {
    this.pending ??= setTimeout(() => this.#write(), 150);
  }

  #write() {
    clearTimeout(this.pending);
    this.pending = null;
    if (location.hash !== this.address()) history.replaceState(null, "", this.address());
  }
}

function parse(hash) {
  const values = {};
  for (const [name, text] of new URLSearchParams(hash.slice(1))) {
    if (!NUMBERS.has(name)) values[name] = text;
    else if (text.trim() !== "" && Number.isFinite(Number(text))) values[name] = Number(text);
  }
  return values;
}
