// The embedding: one point per analysed step, coloured by a variable, linked to the player.
// Plotly draws the axes and answers zooming; the points lie on a canvas beneath it.

import { CATEGORICAL, axisChoices, columnChoices, presentValues } from "./analysis_rows.js";
import {
  NOTHING, categoryMark, divergingScale, gradient, sampleScale, sequentialScale, themeColours,
} from "./colours.js";
import { loadPlotly } from "./plotting.js";
import { Lasso, formatCorners, parseCorners, rowsInside } from "./lasso.js";
import {
  DENSITY_FROM, coprimeStride, nearestPoint, paintDensity, paintPoints, pointStyle, rgb,
} from "./point_layer.js";
import { number, plural, scaled, textScale } from "./words.js";

const COLOUR_NAMES = { step: "time" };
const MARGIN = { l: 46, r: 14, t: 8, b: 40 };
const SHADES = 64;
const MAX_SORTED = 100_000;
const CLICK_REACH = 12;
const DRAG_THRESHOLD = 4;
const TAIL_STEPS = 8;
const DENSITY_CELL = 2;

/** Choices of colour: every variable that a row has a value of. */
export function colourChoices(analysis) {
  const columns = columnChoices(analysis).map((choice) => ({
    ...choice, label: COLOUR_NAMES[choice.key] ?? choice.label,
  }));
  return [...columns, ...axisChoices(analysis)];
}

/** Calls `onPick({source, episodeId, step})` when the reader clicks on a point. */
export class Scatter {
  constructor(onPick) {
    this.onPick = onPick;
    this.onHover = () => {};
    this.onLasso = () => {};
    this.lasso = new Lasso(document.getElementById("scatter"), (corners) => this.#lassoed(corners));
    this.box = document.getElementById("scatter");
    this.canvas = Object.assign(document.createElement("canvas"), { className: "points" });
    this.pathCanvas = Object.assign(document.createElement("canvas"), { className: "points" });
    this.plot = Object.assign(document.createElement("div"), { className: "plot" });
    this.marker = Object.assign(document.createElement("div"), { className: "marker", hidden: true });
    this.legend = document.getElementById("legend");
    this.counter = document.getElementById("embedding-count");
    this.table = null;
    this.sample = null;
    this.path = [];
    this.step = 0;
    this.drawing = 0;
    this.followsZoom = false;
    this.plainAxes = null;
    // Resolves when points have been shown, before there are axes.
    this.firstPoints = new Promise((resolve) => { this.announcePoints = resolve; });
    this.#connectPointer();
    new ResizeObserver(() => this.#resize()).observe(this.box);
  }

  /** Shows the rows of another analysis. */
  setRows(rows) {
    this.table = rows;
    this.analysis = rows.analysis;
  }

  /** Draws with the given axes, colour and source. */
  async draw({ x, y, colour, shown }) {
    const turn = ++this.drawing;
    const [xs, ys, colours, sources, episodes, steps] = await Promise.all(
      [x, y, colour, "source", "episode_id", "step"].map((key) => this.table.column(key)),
    );
    if (turn !== this.drawing) return;
    this.request = { x, y, colour, shown };
    this.values = { xs, ys, colours, sources, episodes, steps };
    this.rows = this.#chooseRows(shown);
    this.colouring = this.#colouring();
    this.path = this.#findPath();
    // Before the points are drawn: what stands in the foot decides how much room is left for them.
    this.counter.textContent = plural(this.rows.length, "step");
    this.#showLegend();
    await this.redraw();
  }

  /** Steps inside a polygon that `onLasso` gave, `[{source, episodeId, step, value}]`; null for none. */
  setSelection(text) {
    this.corners = parseCorners(text);
    if (!this.request) return null;
    this.show(this.step);
    if (!this.corners) return null;
    const { xs, ys } = this.values;
    return Array.from(rowsInside(this.corners, this.rows, xs, ys), (row) => this.pointOf(row));
  }

  /** Highlights a rollout, `{source, episodeId}`, or none, without drawing the points anew. */
  setSample(sample) {
    this.sample = sample;
    if (!this.request) return;
    this.path = this.#findPath();
    this.show(this.step);
  }

  /** Columns for a table: one row per point that is drawn. */
  tableOfPoints() {
    const { xs, ys, colours, sources, episodes, steps } = this.values;
    const { x, y, colour } = this.request;
    const column = (values) => Array.from(this.rows, (row) => values[row]);
    const named = CATEGORICAL.has(colour)
      ? Array.from(this.rows, (row) => this.table.categoryName(colour, colours[row])) : column(colours);
    return {
      source: Array.from(this.rows, (row) => this.analysis.source_names[sources[row]]),
      episode_id: column(episodes), [x]: column(xs), [y]: column(ys), [colour]: named, step: column(steps),
    };
  }

  /** Moves the mark of the current step. */
  show(step) {
    this.step = step;
    const layout = this.#axes();
    if (layout) this.#paintPath(layout, step);
    const row = this.path.find((candidate) => this.values.steps[candidate] === step);
    this.marker.hidden = row === undefined || !layout;
    if (this.marker.hidden) return;
    const { xaxis, yaxis } = layout;
    const x = xaxis.l2p(this.values.xs[row]);
    const y = yaxis.l2p(this.values.ys[row]);
    const inside = x >= 0 && y >= 0 && x <= xaxis._length && y <= yaxis._length;
    this.marker.classList.toggle("outside", !inside);
    const left = xaxis._offset + Math.min(Math.max(x, 0), xaxis._length);
    const top = yaxis._offset + Math.min(Math.max(y, 0), yaxis._length);
    this.marker.style.transform = `translate(${left}px, ${top}px)`;
  }

  /** Draws everything anew, for instance in another theme or size. */
  async redraw() {
    if (!this.request || this.box.clientWidth === 0) return;
    if (!this.plot.isConnected) {
      this.box.replaceChildren(
        this.canvas, this.pathCanvas, this.plot, this.marker, this.lasso.canvas);
    }
    if (!this.plot._fullLayout) {
      this.plainAxes = plainAxes(this.#layout());
      this.#paint();
      afterPainting(this.announcePoints);
    }
    const Plotly = await loadPlotly();
    // Plotly wants a trace; this one is never seen.
    const trace = { type: "scatter", x: [null], y: [null], hoverinfo: "skip" };
    await Plotly.react(this.plot, [trace], this.#layout(), {
      displayModeBar: false, responsive: false, scrollZoom: true, doubleClick: "reset",
    });
    if (!this.followsZoom) {
      this.followsZoom = true;
      for (const name of ["plotly_relayout", "plotly_relayouting"]) {
        this.plot.on(name, () => this.#paint());
      }
    }
    this.#paint();
  }

  /** Plotly's axes; until it runs, plain ones in the same place; null where nothing is to be drawn. */
  #axes() {
    return this.plot._fullLayout ?? this.plainAxes;
  }

  #lassoed(corners) {
    const { xaxis, yaxis } = this.#axes();
    this.onLasso(formatCorners(corners.map(([x, y]) =>
      [xaxis.p2l(x - xaxis._offset), yaxis.p2l(y - yaxis._offset)])));
  }

  #chooseRows(shown) {
    const { sources } = this.values;
    const wanted = this.analysis.source_names.indexOf(shown);
    const rows = new Uint32Array(sources.length);
    for (let row = 0; row < rows.length; row += 1) rows[row] = row;
    return wanted < 0 ? rows : rows.filter((row) => sources[row] === wanted);
  }

  /** Rows of the open rollout in the order of time. */
  #findPath() {
    if (!this.sample) return [];
    const { source: name, episodeId } = this.sample;
    const source = this.analysis.source_names.indexOf(name);
    const { sources, episodes, steps } = this.values;
    const path = [];
    for (let row = 0; row < sources.length; row += 1) {
      if (episodes[row] === episodeId && sources[row] === source) path.push(row);
    }
    return path.sort((a, b) => steps[a] - steps[b]);
  }

  #layout() {
    const theme = themeColours();
    const { x, y } = this.request;
    const { xs, ys } = this.values;
    const label = (key) => axisChoices(this.analysis).find((choice) => choice.key === key).label;
    const axis = (key, values) => ({
      title: { text: label(key), standoff: 4 }, range: paddedRange(values), showgrid: false,
      zeroline: false, ticks: "", automargin: false, nticks: 7, showline: false, type: "linear", tickangle: 0,
    });
    return {
      width: this.box.clientWidth, height: this.box.clientHeight,
      margin: scaled(MARGIN, textScale()),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: theme.font, size: 11 * textScale(), color: theme.quiet }, hovermode: false,
      dragmode: "pan", xaxis: axis(x, xs), yaxis: axis(y, ys),
      // Unchanged while only colours or the rollout change, so that a zoom survives.
      uirevision: `${this.analysis.id} ${x} ${y}`,
    };
  }

  #paint() {
    const layout = this.#axes();
    if (!layout) return;
    const { xaxis, yaxis } = layout;
    const density = window.devicePixelRatio || 1;
    const width = Math.round(xaxis._length * density);
    const height = Math.round(yaxis._length * density);
    for (const canvas of [this.canvas, this.pathCanvas]) {
      Object.assign(canvas, { width, height });
      Object.assign(canvas.style, {
        left: `${xaxis._offset}px`, top: `${yaxis._offset}px`,
        width: `${xaxis._length}px`, height: `${yaxis._length}px`,
      });
    }
    const theme = themeColours();
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = theme.surface;
    context.fillRect(0, 0, width, height);
    context.scale(density, density);
    drawGrid(context, xaxis, yaxis, theme.grid);
    this.#paintPoints(context, xaxis, yaxis, density);
    this.show(this.step);
  }

  #paintPoints(context, xaxis, yaxis, density) {
    const { codes, palette, symbols } = this.colouring;
    const { size, opacity } = pointStyle(this.rows.length);
    this.positions = this.#project(this.rows, xaxis, yaxis);
    const pixels = density === 1 ? this.positions : this.positions.map((at) => at * density);
    const { width, height } = this.canvas;
    const image = context.getImageData(0, 0, width, height);
    if (this.rows.length > DENSITY_FROM) {
      paintDensity(image, pixels, codes, palette, Math.round(DENSITY_CELL * density));
    } else {
      const scaledSize = size * density * textScale();
      paintPoints(image, pixels, codes, palette, symbols, { size: scaledSize, opacity });
    }
    context.putImageData(image, 0, 0);
  }

  // The whole path is faint, the steps just behind the current one are strong: a long episode
  // would otherwise hide the points beneath it.
  #paintPath({ xaxis, yaxis }, step) {
    const theme = themeColours();
    const context = this.pathCanvas.getContext("2d");
    const density = window.devicePixelRatio || 1;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, xaxis._length, yaxis._length);
    if (this.corners) strokeCorners(context, this.corners, xaxis, yaxis, theme.accent);
    if (this.path.length === 0) return;
    const positions = this.#project(this.path, xaxis, yaxis);
    const { steps } = this.values;
    let current = this.path.findIndex((row) => steps[row] >= step);
    if (current < 0) current = this.path.length - 1;
    context.lineJoin = "round";
    const scale = textScale();
    strokePath(context, positions, 0, this.path.length - 1, theme.highlight, scale, 0.3);
    drawDots(context, positions, theme, (this.path.length > 150 ? 1.4 : 2.2) * scale);
    const tail = Math.max(0, current - TAIL_STEPS);
    strokePath(context, positions, tail, current, theme.surface, 4.5 * scale, 1);
    strokePath(context, positions, tail, current, theme.highlight, 2 * scale, 1);
  }

  /** x, y of rows in CSS pixels of the plot area. */
  #project(rows, xaxis, yaxis) {
    const { xs, ys } = this.values;
    const [x0, xScale] = [xaxis.l2p(0), xaxis.l2p(1) - xaxis.l2p(0)];
    const [y0, yScale] = [yaxis.l2p(0), yaxis.l2p(1) - yaxis.l2p(0)];
    const positions = new Float32Array(2 * rows.length);
    rows.forEach((row, index) => {
      positions[2 * index] = x0 + xScale * xs[row];
      positions[2 * index + 1] = y0 + yScale * ys[row];
    });
    return positions;
  }

  #colouring() {
    const { colour } = this.request;
    const { colours } = this.values;
    return CATEGORICAL.has(colour)
      ? categoricalColouring(colours, this.rows, (value) => this.table.categoryName(colour, value))
      : continuousColouring(colours, this.rows, colour);
  }

  #colourName() {
    return colourChoices(this.analysis).find(({ key }) => key === this.request.colour).label;
  }

  /** What the colours stand for: `{title, categories}`, and of numbers `numbers` and `colours` too. */
  legendContent() {
    const title = this.#colourName();
    const { categories, scale, low, high, isBeyond, isMissing } = this.colouring;
    if (categories) return { title, categories };
    return {
      title, colours: scale.map(([, colour]) => colour),
      numbers: [low, high].map((value, end) => `${isBeyond[end] ? ["≤ ", "≥ "][end] : ""}${number(value, 2)}`),
      categories: isMissing ? [{ name: "not known", colour: NOTHING, symbol: "circle" }] : [],
    };
  }

  #showLegend() {
    const { title, numbers, categories } = this.legendContent();
    const name = Object.assign(textElement("span", title), { className: "legend-title" });
    this.legend.replaceChildren(name, ...categories.map(legendEntry));
    if (!numbers) return;
    const bar = Object.assign(document.createElement("i"), { className: "gradient" });
    bar.style.background = gradient(this.colouring.scale);
    const [low, high] = numbers.map((text) => textElement("span", text));
    name.after(low, bar, high);
  }

  #connectPointer() {
    let start = null;
    let waiting = false;
    this.box.addEventListener("pointerdown", (event) => { start = event; this.onHover(null); }, true);
    window.addEventListener("pointerup", (event) => {
      const isClick = start && event.button === 0 &&
        Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY) < DRAG_THRESHOLD;
      start = null;
      const row = isClick ? this.#rowAt(event) : undefined;
      if (row !== undefined) this.onPick(this.pointOf(row));
    }, true);
    this.box.addEventListener("pointermove", (event) => {
      if (start || waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        const row = this.#rowAt(event);
        this.canvas.parentElement?.classList.toggle("on-point", row !== undefined);
        this.onHover(row === undefined ? null : this.pointOf(row), event);
      });
    }, true);
    this.box.addEventListener("pointerleave", () => this.onHover(null));
  }

  // The open rollout comes first, so that its steps can be picked within a crowd.
  #rowAt(event) {
    const layout = this.#axes();
    if (!layout) return undefined;
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    if (x < 0 || y < 0 || x > width || y > height) return undefined;
    const onPath = nearestPoint(this.#project(this.path, layout.xaxis, layout.yaxis), x, y, 5);
    if (onPath >= 0) return this.path[onPath];
    const index = nearestPoint(this.positions, x, y, CLICK_REACH);
    return index < 0 ? undefined : this.rows[index];
  }

  /** `{source, episodeId, step, colour, value}` of a row of the analysis. */
  pointOf(row) {
    const { sources, episodes, steps, colours } = this.values;
    const { colour } = this.request;
    return {
      source: this.analysis.source_names[sources[row]], episodeId: episodes[row], step: steps[row],
      colour: this.#colourName(),
      value: CATEGORICAL.has(colour) ? this.table.categoryName(colour, colours[row]) : number(colours[row]),
    };
  }

  #resize() {
    if (this.box.clientWidth > 0) this.redraw();
  }
}

function strokeCorners(context, corners, xaxis, yaxis, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.beginPath();
  for (const [x, y] of corners) context.lineTo(xaxis.l2p(x), yaxis.l2p(y));
  context.closePath();
  context.stroke();
}

function strokePath(context, positions, first, last, colour, width, opacity) {
  context.globalAlpha = opacity;
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  for (let index = first; index <= last; index += 1) {
    context.lineTo(positions[2 * index], positions[2 * index + 1]);
  }
  context.stroke();
  context.globalAlpha = 1;
}

function drawDots(context, positions, theme, radius) {
  Object.assign(context, { fillStyle: theme.surface, strokeStyle: theme.highlight, lineWidth: 1 });
  for (let at = 0; at < positions.length; at += 2) {
    context.beginPath();
    context.arc(positions[at], positions[at + 1], radius, 0, 2 * Math.PI);
    context.fill();
    context.stroke();
  }
}

/** Axes of a layout, with what this page asks of Plotly's; of the ticks they know nothing. */
function plainAxes({ width, height, margin, xaxis, yaxis }) {
  const axis = ([low, high], offset, length, isUpwards) => {
    const [from, to] = isUpwards ? [length, 0] : [0, length];
    return {
      _offset: offset, _length: length,
      l2p: (value) => from + ((value - low) / (high - low)) * (to - from),
      p2l: (pixel) => low + ((pixel - from) / (to - from)) * (high - low),
    };
  };
  return {
    xaxis: axis(xaxis.range, margin.l, width - margin.l - margin.r, false),
    yaxis: axis(yaxis.range, margin.t, height - margin.t - margin.b, true),
  };
}

/** Calls back after the browser has shown what stands in the page now. */
const afterPainting = (callBack) => requestAnimationFrame(() => setTimeout(callBack));

function drawGrid(context, xaxis, yaxis, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  for (const { x } of xaxis._vals ?? []) {
    const at = Math.round(xaxis.l2p(x)) + 0.5;
    context.moveTo(at, 0);
    context.lineTo(at, yaxis._length);
  }
  for (const { x } of yaxis._vals ?? []) {
    const at = Math.round(yaxis.l2p(x)) + 0.5;
    context.moveTo(0, at);
    context.lineTo(xaxis._length, at);
  }
  context.stroke();
}

function paddedRange(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [-1, 1];
  const margin = 0.04 * (high - low) || 1;
  return [low - margin, high + margin];
}

/** Values of rows, of so many at most, spread over all without a period that theirs could meet. */
function spreadValues(values, rows) {
  const stride = coprimeStride(rows.length);
  return Float32Array.from({ length: Math.min(rows.length, MAX_SORTED) }, (_, count) =>
    values[rows[(count * stride) % rows.length]]);
}

function continuousColouring(values, rows, name) {
  const sorted = spreadValues(values, rows).filter(Number.isFinite).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))] ?? 0;
  // Single outliers would leave everything else in one shade.
  let [low, high] = [at(0.01), at(0.99)];
  if (low === high) [low, high] = [at(0), at(1)];
  if (low === high) high = low + 1;
  const isSigned = name === "reward" && low < 0;
  if (isSigned) [low, high] = [-Math.max(-low, high), Math.max(-low, high)];
  const scale = isSigned ? divergingScale() : sequentialScale();
  const codes = Uint8Array.from(rows, (row) => {
    const share = (values[row] - low) / (high - low);
    // The last shade is that of a missing value.
    return Number.isNaN(share) ? SHADES : Math.round((SHADES - 1) * Math.min(1, Math.max(0, share)));
  });
  const palette = [...sampleScale(scale, SHADES), rgb(NOTHING)];
  const isMissing = codes.includes(SHADES);
  const isBeyond = [at(0) < low, at(1) > high];
  return { codes, palette, symbols: palette.map(() => "circle"), scale, low, high, isBeyond, isMissing };
}

function categoricalColouring(values, rows, nameOf) {
  const present = presentValues(values);
  const ranked = present.filter((category) => category !== -1);
  const categories = present.map((category) => ({
    name: nameOf(category), ...categoryMark(category, ranked.indexOf(category)),
  }));
  const position = new Map(present.map((category, index) => [category, index]));
  return {
    categories,
    codes: Uint16Array.from(rows, (row) => position.get(values[row])),
    palette: categories.map(({ colour }) => rgb(colour)),
    symbols: categories.map(({ symbol }) => symbol),
  };
}

function legendEntry({ name, colour, symbol }) {
  const swatch = Object.assign(document.createElement("i"), { className: `swatch ${symbol}` });
  swatch.style.background = colour;
  const entry = Object.assign(document.createElement("span"), { className: "category" });
  entry.append(swatch, name);
  return entry;
}

const textElement = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
