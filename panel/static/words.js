// How numbers and actions are written.

const DIRECTIONS = { left: [-1, 0], right: [1, 0], up: [0, -1], down: [0, 1] };
const SVG = "http://www.w3.org/2000/svg";

/** How much larger than the design's 14 pixels the page's text is; lengths in scripts follow it. */
export function textScale() {
  knownScale ??= parseFloat(getComputedStyle(document.documentElement).fontSize) / 14;
  return knownScale;
}

// Computed styles are dear to read at every step, and change with the window only.
let knownScale = null;
window.addEventListener("resize", () => { knownScale = null; });

/** Margins of a plot, by side, in the page's text size. */
export const scaled = (margin, scale) =>
  Object.fromEntries(Object.entries(margin).map(([side, width]) => [side, Math.round(width * scale)]));

/** A number with three decimals at most and a true minus sign. */
export function number(value, digits = 3) {
  if (value === undefined || value === null || Number.isNaN(value)) return "–";
  const text = Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3)
    ? value.toExponential(1)
    : value.toFixed(digits);
  const trimmed = text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text;
  return trimmed.replace("-", "−").replace(/^−0$/, "0");
}

/** Both ends of a signed scale and its middle, as text. */
export const signedEnds = (limit, digits) => [`−${number(limit, digits)}`, "0", `+${number(limit, digits)}`];

/** A number that keeps its width while it changes. */
export function steadyNumber(value, digits = 3) {
  return Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "–";
}

/** A whole number with its digits in groups; making an `Intl.NumberFormat` would take 80 ms. */
export const count = (value) => String(value).replaceAll(/\B(?=(\d{3})+$)/g, "\u202f");

export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Direction of an action's name such as "upleft" as [x, y], or null when it names none. */
export function actionDirection(name) {
  if (!/^((up|down|left|right)[^a-z]*)+$/i.test(name)) return null;
  const direction = [0, 0];
  for (const word of name.toLowerCase().match(/up|down|left|right/g)) {
    direction[0] += DIRECTIONS[word][0];
    direction[1] += DIRECTIONS[word][1];
  }
  return direction[0] || direction[1] ? direction : null;
}

/** Draws an action into an svg of view box −12 … 12: an arrow, a dot for nothing, or its letter. */
export function drawGlyph(svg, name) {
  svg.replaceChildren();
  const direction = actionDirection(name);
  if (direction) {
    const angle = (Math.atan2(direction[1], direction[0]) * 180) / Math.PI;
    const arrow = document.createElementNS(SVG, "path");
    arrow.setAttribute("d", "M-9 -2H1V-7L10 0L1 7V2H-9Z");
    arrow.setAttribute("transform", `rotate(${angle})`);
    svg.append(arrow);
  } else if (isNothing(name)) {
    const dot = document.createElementNS(SVG, "circle");
    dot.setAttribute("r", "3.5");
    svg.append(dot);
  } else {
    const text = document.createElementNS(SVG, "text");
    text.setAttribute("text-anchor", "middle");
    text.setAttribute("y", "5");
    text.textContent = name.slice(0, 2);
    svg.append(text);
  }
}

/** One character or short word for an axis label. */
export function actionSign(name) {
  const direction = actionDirection(name);
  if (direction) {
    return [["↖", "↑", "↗"], ["←", "·", "→"], ["↙", "↓", "↘"]][direction[1] + 1][direction[0] + 1];
  }
  return isNothing(name) ? "·" : name;
}

const isNothing = (name) =>
  /^(|none|null\d*|noop|no-op|nothing|stay|wait|idle)$/i.test(name.trim());
