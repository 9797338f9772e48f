// What the colours of a plot stand for, as part of a saved drawing: in the page it stands beside.

import { scaleParts } from "./colour_legend.js";
import { themeColours } from "./colours.js";
import { textScale } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const FONT_SIZE = 11;
const LINE_HEIGHT = 20;
const SIDE = 14;
const GAP = 8;
const BAR = { width: 72, height: 8 };
const MARK_ROOM = 14;
// As point_layer.js draws them, about (0, 0).
const CROSS = "M-4-1.3h2.7v-2.7h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7z";
const MARKS = {
  circle: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", square: "M-3.5-3.5h7v7h-7z",
  diamond: "M0-4.5L4.5 0L0 4.5L-4.5 0z", "triangle-up": "M0-4.5L4.5 3.5h-9z", cross: CROSS, x: CROSS,
};

/**
 * Adds a legend below everything that an `svg` element shows, which becomes so much higher, and
 * returns the new height. `legend` is `{title, numbers, colours}`, as for `showScale`, or
 * `{title, categories: [{name, colour, symbol}]}`; categories may follow a scale.
 */
export function addLegend(svg, { title, numbers = [], colours = [], categories = [] }, { width, height }) {
  const scale = textScale();
  const items = [
    textItem(title, { "font-weight": 600 }),
    ...(numbers.length ? [scaleItem(numbers, colours)] : []), ...categories.map(categoryItem),
  ];
  const group = node("g", { "class": "legend", "font-family": themeColours().font });
  let [x, line] = [SIDE, 0];
  for (const { width: own, nodes } of items) {
    if (x > SIDE && (x + own) * scale > width - SIDE) [x, line] = [SIDE, line + 1];
    const place = node("g", { transform: `translate(${x}, ${(line + 0.5) * LINE_HEIGHT})` });
    place.append(...nodes);
    group.append(place);
    x += own + GAP;
  }
  group.setAttribute("transform", `translate(0, ${height}) scale(${scale})`);
  svg.append(group);
  const total = Math.ceil(height + (line + 1.4) * LINE_HEIGHT * scale);
  svg.setAttribute("height", total);
  svg.setAttribute("viewBox", `0 0 ${width} ${total}`);
  return total;
}

function textItem(text, attributes = {}, x = 0) {
  const fill = themeColours().text;
  const label = node("text", { x, y: 0.36 * FONT_SIZE, "font-size": FONT_SIZE, fill, ...attributes });
  label.textContent = text;
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.font = `${attributes["font-weight"] ?? 400} ${FONT_SIZE}px ${themeColours().font}`;
  return { width: x + context.measureText(text).width, nodes: [label] };
}

/** Numbers with the colours between them, which stay in one line. */
function scaleItem(numbers, colours) {
  const parts = scaleParts(numbers, colours).map(({ text, shades }) =>
    (text === undefined ? barItem(shades) : textItem(text)));
  let width = 0;
  const nodes = parts.map((part) => {
    const place = node("g", { transform: `translate(${width}, 0)` });
    place.append(...part.nodes);
    width += part.width + GAP;
    return place;
  });
  return { width: width - GAP, nodes };
}

function barItem(shades) {
  const id = `shades-${shades.join("").replaceAll(/[^0-9a-z]/gi, "")}`;
  const ramp = node("linearGradient", { id });
  ramp.append(...shades.map((colour, at) =>
    node("stop", { offset: at / Math.max(shades.length - 1, 1), "stop-color": colour })));
  const bar = node("rect", { ...BAR, y: -BAR.height / 2, rx: BAR.height / 2, fill: `url(#${id})` });
  return { width: BAR.width, nodes: [ramp, bar] };
}

function categoryItem({ name, colour, symbol }) {
  const turn = symbol === "x" ? " rotate(45)" : "";
  const mark = node("path", { d: MARKS[symbol], fill: colour, transform: `translate(5, 0)${turn}` });
  const { width, nodes } = textItem(name, {}, MARK_ROOM);
  return { width, nodes: [mark, ...nodes] };
}

function node(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
