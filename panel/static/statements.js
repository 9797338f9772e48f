// The ranked table of causal statements, with what speaks for and against each.

import { fetchKept } from "./api.js";
import { lagName, pairName } from "./matrices.js";
import { count, number, plural } from "./words.js";

const ROWS_AT_ONCE = 200;
const MARKS = { 1: ["✓", "for"], "-1": ["✗", "against"], 0: ["·", "silent"] };
const element = (id) => document.getElementById(id);

/** Calls `onChoose({group, source, target, lag})` when the reader picks a statement. */
export class Statements {
  constructor(onChoose) {
    this.onChoose = onChoose;
    this.columns = {};
    this.waiting = [];
    this.more = element("more-statements");
    this.more.addEventListener("click", () => this.#showMore());
  }

  /** Shows the statements of a file; those of one group come alone when `group` is not "all". */
  async show(file, group) {
    if (file === this.file && group === this.group) return;
    const arrays = await fetchKept(`api/consistency/${file.id}/statements`);
    Object.assign(this, { file, group });
    this.columns = Object.fromEntries(Object.entries(arrays).map(([name, { data }]) => [name, data]));
    const total = this.columns.rank?.length ?? 0;
    const rows = Array.from({ length: total }, (_, row) => row)
      .filter((row) => group === "all" || file.groups[this.columns.behaviour[row]] === group);
    element("statements-head-evidence").colSpan = file.evidence.length + 1;
    element("evidence-names").replaceChildren(
      ...["", "", "", ""].map((text) => cell("td", text)),
      ...["sum", ...file.evidence].map((name) => cell("th", name, { scope: "col", className: "upright" })));
    // Thousands of rows would keep the page busy whenever it is laid out.
    this.waiting = rows;
    element("statements").replaceChildren();
    this.#showMore();
    element("statements").closest(".scrolled").hidden = rows.length === 0;
    element("statements-note").textContent = describeStatements(rows.length, total, group);
  }

  /** Columns for a table, as in causal_statements.csv. */
  table() {
    const { behaviour, ...rest } = this.columns;
    return { behaviour: Array.from(behaviour ?? [], (code) => this.file.groups[code]), ...rest };
  }

  #showMore() {
    element("statements").append(...this.waiting.slice(0, ROWS_AT_ONCE).map((row) => this.#row(row)));
    this.waiting = this.waiting.slice(ROWS_AT_ONCE);
    this.more.hidden = this.waiting.length === 0;
    this.more.textContent = `Show ${Math.min(ROWS_AT_ONCE, this.waiting.length)} more of ${count(this.waiting.length)}`;
  }

  #row(row) {
    const at = (name) => this.columns[name]?.[row];
    const group = this.file.groups[at("behaviour")];
    const pair = { source: at("source"), target: at("target") };
    const line = document.createElement("tr");
    line.dataset.rank = at("rank");
    const button = Object.assign(document.createElement("button"), {
      type: "button", className: "link", textContent: `${pair.source} → ${pair.target}`,
      ariaLabel: pairName(pair, at("lag")),
    });
    button.addEventListener("click", () => this.onChoose({ group, ...pair, lag: at("lag") }));
    const statement = cell("th", "", { scope: "row" });
    const where = Object.assign(document.createElement("span"), {
      className: "quiet",
      textContent: `${lagName(at("lag"))}, ${group === "all" ? "all samples" : `behaviour ${group}`}`,
    });
    statement.append(button, where);
    line.append(cell("td", at("rank"), { className: "numeric" }), statement,
      this.#estimate(at("r"), at("r_lower"), at("r_upper")),
      this.#estimate(at("gradient_mean"), at("gradient_lower"), at("gradient_upper")),
      cell("td", number(at("score"), 0), { className: "evidence" }),
      ...this.file.evidence.map((name) => evidenceCell(name, at(`evidence_${name}`))));
    return line;
  }

  #estimate(value, lower, upper) {
    return cell("td", number(value, 2), {
      className: "numeric", title: `95% interval ${number(lower, 2)} to ${number(upper, 2)}`,
    });
  }
}

function describeStatements(shown, total, group) {
  if (total === 0) return "No statement could be made.";
  if (shown === 0) return `None of the ${plural(total, "statement")} kept is about behaviour ${group}.`;
  return `${count(shown)} of ${plural(total, "statement")}, the best supported first. ` +
    "✓ speaks for it, ✗ against, · is silent.";
}

function evidenceCell(name, value) {
  const [sign, word] = MARKS[value] ?? MARKS[0];
  const found = cell("td", "", { className: `evidence ${word}`, title: `${name}: ${word}` });
  const mark = Object.assign(document.createElement("span"), { textContent: sign, ariaHidden: "true" });
  found.append(mark, Object.assign(document.createElement("span"), { className: "unseen", textContent: word }));
  return found;
}

function cell(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}
