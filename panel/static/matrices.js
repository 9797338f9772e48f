// Matrices of what goes with what, and what moves what, at each lag.

import { showScale } from "./colour_legend.js";
import { divergingColours, themeColours } from "./colours.js";
import { baseLayout, categoryAxis, cellDots, drawPlot, signedHeatmap } from "./plotting.js";
import { number, plural, signedEnds } from "./words.js";

const MARGIN = { l: 46, r: 12, t: 6, b: 42 };
const SIGNIFICANT = 0.05;
const TITLES = {
  correlation: "r", regression: "regression coefficient", causation: "Jacobian", push: "effect of a push",
  agreement: "agreement",
};
const element = (id) => document.getElementById(id);

/** The plot of one matrix; calls `onCell(source, target)` when the reader clicks into it. */
export class MatrixPlot {
  constructor(onCell) {
    this.box = element("matrix-plot");
    this.onCell = onCell;
    this.content = null;
    this.box.addEventListener("click", (event) => this.#click(event));
    new ResizeObserver(() => this.redraw()).observe(this.box);
  }

  /**
   * Shows one lag of `{quantity, value, q, order, limit}`: `value` and `q` are (D, D) rows, `q` null
   * without a test; `cell` is `{source, target}`.
   */
  async show(content) {
    this.content = content;
    await this.redraw();
  }

  async redraw() {
    if (!this.content) return;
    const { value, order, limit, quantity } = this.content;
    const names = order.map((component) => `${component}`);
    const z = order.map((source) => order.map((target) => value[source][target]));
    const heat = signedHeatmap({
      x: names, y: names, z, limit, scaleTitle: TITLES[quantity],
      hovertemplate: `%{y} → %{x}: ${TITLES[quantity]} %{z:.3f}<extra></extra>`,
    });
    const layout = {
      ...baseLayout(this.box, MARGIN), shapes: this.#outline(),
      xaxis: categoryAxis("component later, at t + lag"),
      yaxis: { ...categoryAxis("component at t"), autorange: "reversed" },
    };
    if (await drawPlot(this.box, [heat, this.#dots()], layout)) this.#showLegend();
  }

  /** Columns for a table: one row per pair of components. */
  table() {
    const { value, q, order, lag, quantity } = this.content;
    const pairs = order.flatMap((source) => order.map((target) => [source, target]));
    return {
      source: pairs.map(([source]) => source), target: pairs.map(([, target]) => target),
      lag: pairs.map(() => lag), [quantity]: pairs.map(([source, target]) => value[source][target]),
      q: q ? pairs.map(([source, target]) => q[source][target]) : [],
    };
  }

  #dots() {
    const { q, order } = this.content;
    return cellDots(q ? order.flatMap((source) => order
      .filter((target) => q[source][target] < SIGNIFICANT).map((target) => [`${target}`, `${source}`])) : []);
  }

  #outline() {
    const { order, cell } = this.content;
    const [across, down] = [order.indexOf(cell.target), order.indexOf(cell.source)];
    if (across < 0 || down < 0) return [];
    return [{
      type: "rect", x0: across - 0.5, x1: across + 0.5, y0: down - 0.5, y1: down + 0.5,
      line: { color: themeColours().highlight, width: 3 },
    }];
  }

  #showLegend() {
    const { quantity, limit, q } = this.content;
    showScale(element("matrix-legend"), {
      title: TITLES[quantity], numbers: signedEnds(limit, 2), colours: divergingColours(),
      note: q ? `● q below ${SIGNIFICANT}` : "",
    });
  }

  #click(event) {
    const layout = this.box._fullLayout;
    if (!layout || !this.content) return;
    const { left, top } = this.box.getBoundingClientRect();
    const place = ({ _offset: offset, p2c }, at) => Math.round(p2c(at - offset));
    const { order } = this.content;
    const target = order[place(layout.xaxis, event.clientX - left)];
    const source = order[place(layout.yaxis, event.clientY - top)];
    if (source !== undefined && target !== undefined) this.onCell(source, target);
  }
}

/** Rows of one lag of (L, D, D) values. */
export function atLag({ data, shape }, lag) {
  const size = shape.at(-1);
  return Array.from({ length: size }, (_, source) =>
    Array.from(data.subarray((lag * size + source) * size, (lag * size + source + 1) * size)));
}

/**
 * The weaker of a correlation and a Jacobian, both in standard deviations, positive where they have
 * one sign, negative where they have opposite ones.
 */
export function agreementOf(correlation, jacobian) {
  return {
    shape: correlation.shape,
    data: correlation.data.map((r, at) =>
      Math.sign(r * jacobian.data[at]) * Math.min(Math.abs(r), Math.abs(jacobian.data[at]))),
  };
}

/** The largest size beyond lag 0, where Jacobians are those of a state with itself. */
export function limitOf({ data, shape }, lags) {
  const plane = shape.at(-1) ** 2;
  const largest = (from) => data.subarray(from).reduce((top, value) => Math.max(top, Math.abs(value) || 0), 0);
  const first = lags[0] === 0 && lags.length > 1 ? plane : 0;
  return largest(first) || largest(0) || 1;
}

/** "after 2 steps". */
export const lagName = (lag) => (lag === 0 ? "at the same step" : `after ${plural(lag, "step")}`);

/** "3 → 5 after 2 steps". */
export const pairName = ({ source, target }, lag) => `${source} → ${target} ${lagName(lag)}`;
