// What the page shows, kept in the part of the address after '#', so that a view can be shared.

const NUMBERS = new Set(["episode", "step", "gain", "blur", "threshold", "lag"]);
const NAMES = new Set([
  ...NUMBERS, "data", "view", "analysis", "x", "y", "colour", "shown", "lasso", "target", "at", "path",
  "placement", "negative", "positive", "beside", "filter", "scope", "extreme", "behaviours", "dynamics",
  "group", "quantity", "variant", "order", "cell", "dynamic", "agreement", "effects", "effect",
  "allEffects", "world", "twinned", "pair", "fidelity", "measure", "log", "curve", "probes", "probed",
  "sought", "kind", "dataset", "min-length", "max-length", "min-return", "max-return", "complete", "sort",
  "components", "saliency", "baseline",
]);
// Marks steps of the browser's history that the page made itself.
const OWN = { isOwn: true };

/**
 * Dispatches `change` with the set of changed names whenever the view changes, and `refused` with a
 * sentence when an address asks for what there is not; what the page itself put there is not told.
 */
export class ViewState extends EventTarget {
  constructor() {
    super();
    const { values, refusals } = parse(location.hash);
    this.values = values;
    this.refusals = refusals;
    // A reload asks for what the page itself had put there.
    this.unchecked = new Set(history.state?.isOwn ? [] : Object.keys(values));
    window.addEventListener("popstate", ({ state }) => this.#adopt(parse(location.hash), state?.isOwn));
    window.addEventListener("hashchange", () => this.#adopt(parse(location.hash), history.state?.isOwn));
    this.pending = null;
  }

  get(name) {
    return this.values[name];
  }

  /** The value of a name where it is among those known, or else another, which the reader is told. */
  pick(name, known, otherwise = known[0]) {
    const asked = this.values[name];
    if (asked === undefined || asked === "") return otherwise;
    if (!known.includes(asked)) {
      this.refuse(name);
      return otherwise;
    }
    this.unchecked.delete(name);
    return asked;
  }

  /** Tells once that the value which an address gave a name is not to be had. */
  refuse(name) {
    if (this.unchecked.delete(name)) {
      this.#tell([`The address asks for ${name} “${this.values[name]}”, which is not here.`]);
    }
  }

  /** Tells what in the address that the page began with is no value of anything. */
  tellRefusals() {
    this.#tell(this.refusals);
  }

  #tell(sentences) {
    for (const detail of sentences) this.dispatchEvent(new CustomEvent("refused", { detail }));
  }

  /** Sets some values; `push` makes a step in the browser's history. */
  update(values, { push = false } = {}) {
    const changed = new Set(Object.keys(values).filter((n) => values[n] !== this.values[n]));
    if (changed.size === 0) return;
    if (push) this.#write();
    Object.assign(this.values, values);
    for (const name of changed) this.unchecked.delete(name);
    if (push) history.pushState(OWN, "", this.address());
    else this.#writeSoon();
    this.dispatchEvent(new CustomEvent("change", { detail: changed }));
  }

  /** The fragment that restores this view. */
  address() {
    const given = Object.entries(this.values).filter(([, value]) => value !== undefined);
    return `#${new URLSearchParams(given)}`;
  }

  #adopt({ values, refusals }, isOwn) {
    const names = new Set([...Object.keys(values), ...Object.keys(this.values)]);
    const changed = new Set([...names].filter((name) => values[name] !== this.values[name]));
    if (!isOwn) this.#tell(refusals);
    if (changed.size === 0) return;
    this.values = values;
    this.unchecked = new Set(isOwn ? [] : [...changed].filter((name) => name in values));
    this.dispatchEvent(new CustomEvent("change", { detail: changed }));
  }

  // Browsers limit how often the address may be set; playing would exceed that.
  #writeSoon() {
    this.pending ??= setTimeout(() => this.#write(), 150);
  }

  #write() {
    clearTimeout(this.pending);
    this.pending = null;
    if (location.hash !== this.address()) history.replaceState(OWN, "", this.address());
  }
}

/** `{values, refusals}` of a fragment: by name, and sentences on what is no value. */
function parse(hash) {
  const values = {};
  const refusals = [];
  for (const [name, text] of new URLSearchParams(hash.slice(1))) {
    const isNumber = text.trim() !== "" && Number.isFinite(Number(text));
    if (!NAMES.has(name)) refusals.push(`The address names “${name}”, which this page does not know.`);
    else if (!NUMBERS.has(name)) values[name] = text;
    else if (isNumber) values[name] = Number(text);
    else refusals.push(`The address asks for ${name} “${text}”, where a number is expected.`);
  }
  return { values, refusals };
}
