// Conditions on the steps of rollouts, as text and as masks over rows.
//
// A text is a list such as "ica.3 > 2 and action = right and done = last step". A value that holds the
// word "and" or quotes stands in quotes itself: action = "left and right".

import { CATEGORICAL } from "./analysis_rows.js";

const COMPARE = {
  ">=": (value, bound) => value >= bound,
  "<=": (value, bound) => value <= bound,
  "!=": (value, bound) => value !== bound,
  ">": (value, bound) => value > bound,
  "<": (value, bound) => value < bound,
  "=": (value, bound) => value === bound,
};
export const OPERATORS = Object.keys(COMPARE);
const CONDITION = /^\s*([^\s<>=!"]+)\s*(>=|<=|!=|>|<|=)\s*(\S.*?)\s*$/s;
const QUOTED = /^"((?:[^"\\]|\\.)*)"$/s;
const PIECE = /"(?:[^"\\]|\\.)*"|\s+and\s+|./gis;
const SEPARATOR = /^\s+and\s+$/i;
const NEEDS_QUOTES = /^$|^\s|\s$|["\\]|(^|\s)and(\s|$)/i;

/** Why a text is not a list of conditions, in words. */
export class ConditionError extends Error {}

/**
 * A text as conditions `{variable, operator, text, bound}`.
 *
 * `variables` are the names that exist; `codeOf(variable, text)` is the code of a category's name,
 * or undefined.
 */
export function parseConditions(text, variables, codeOf) {
  if (text.trim() === "") return [];
  return partsOf(text).map((part) => {
    const [, variable, operator, written] = CONDITION.exec(part) ?? [];
    if (!variable) {
      throw new ConditionError(`“${part.trim()}” is no condition; one looks like “value > 5”.`);
    }
    if (!variables.includes(variable)) {
      throw new ConditionError(`There is no variable “${variable}” here.`);
    }
    const value = unquoted(written);
    const named = CATEGORICAL.has(variable) ? codeOf(variable, value) : undefined;
    const bound = named ?? numberOf(value);
    if (!Number.isFinite(bound)) {
      throw new ConditionError(`“${value}” is no value of ${variable}.`);
    }
    return { variable, operator, text: value, bound };
  });
}

/** Conditions as a text that `parseConditions` makes the same conditions of. */
export const formatConditions = (conditions) =>
  conditions.map(({ variable, operator, text }) => `${variable} ${operator} ${quoted(text)}`).join(" and ");

/** What stands between those "and" that are in no quotes. */
function partsOf(text) {
  const parts = [""];
  for (const [piece] of text.matchAll(PIECE)) {
    if (SEPARATOR.test(piece)) parts.push("");
    else parts[parts.length - 1] += piece;
  }
  return parts;
}

const quoted = (text) =>
  NEEDS_QUOTES.test(text) ? `"${text.replaceAll(/["\\]/g, "\\$&")}"` : text;

const unquoted = (text) => QUOTED.exec(text)?.[1].replaceAll(/\\(.)/gs, "$1") ?? text;

// The page writes numbers with a true minus sign.
const numberOf = (text) => (text.trim() === "" ? NaN : Number(text.replaceAll("−", "-")));

/** One byte per row: 1 where the condition holds. A value that is not a number meets none. */
export function rowsMeeting({ operator, bound }, values) {
  const compare = COMPARE[operator];
  // Bounds are compared in the precision that the values have.
  const own = values instanceof Float32Array ? Math.fround(bound) : bound;
  return Uint8Array.from(values, (value) => (Number.isFinite(value) && compare(value, own) ? 1 : 0));
}

/**
 * For each episode the row where it meets the conditions, −1 where it does not.
 *
 * With `isSameStep` all must hold at one step, the earliest of which is returned; otherwise each
 * must hold at some step, and the earliest step where any holds is returned.
 */
export function matchEpisodes(masks, steps, { groupOf, firstRows }, isSameStep) {
  const found = new Int32Array(firstRows.length).fill(-1);
  const held = masks.map(() => new Uint8Array(firstRows.length));
  for (let row = 0; row < groupOf.length; row += 1) {
    const holding = masks.filter((mask) => mask[row]).length;
    const isCandidate = isSameStep ? holding === masks.length : holding > 0;
    if (!isCandidate) continue;
    const group = groupOf[row];
    if (found[group] < 0 || steps[row] < steps[found[group]]) found[group] = row;
    if (!isSameStep) masks.forEach((mask, index) => { held[index][group] |= mask[row]; });
  }
  if (isSameStep) return found;
  return found.map((row, group) => (held.every((ones) => ones[group]) ? row : -1));
}

/** Rows of the most extreme episodes, one row each: those with the highest, lowest or most central value. */
export function extremeRows(values, { groupOf, firstRows }, end, limit) {
  const centre = end === "middle" ? median(values) : 0;
  const rank = {
    high: (value) => -value, low: (value) => value, middle: (value) => Math.abs(value - centre),
  }[end];
  const best = new Int32Array(firstRows.length).fill(-1);
  for (let row = 0; row < values.length; row += 1) {
    const group = groupOf[row];
    if (!Number.isFinite(values[row])) continue;
    if (best[group] < 0 || rank(values[row]) < rank(values[best[group]])) best[group] = row;
  }
  return Array.from(best.filter((row) => row >= 0))
    .sort((a, b) => rank(values[a]) - rank(values[b]) || a - b)
    .slice(0, limit);
}

function median(values) {
  const sorted = Float64Array.from(values.filter(Number.isFinite)).sort();
  return sorted[Math.floor(sorted.length / 2)];
}
