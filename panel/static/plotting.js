// Plotly runs when the first plot is drawn: list, frames and points do not wait for its megabytes.

import { divergingScale, themeColours } from "./colours.js";
import { scaled, textScale } from "./words.js";

const ADDRESS = "vendor/plotly.min.js";
let running = null;
let allow;
const allowed = new Promise((resolve) => { allow = resolve; });

/** Lets Plotly run, which keeps the page from doing anything else for a second or two. */
export const allowPlotly = () => allow();

/** Has the browser fetch the script without running it; what is asked for before comes first. */
export function fetchPlotlyAhead() {
  document.head.append(Object.assign(document.createElement("link"), {
    rel: "preload", as: "script", href: ADDRESS, fetchPriority: "low",
  }));
}

/** Resolves to Plotly, whose script runs the first time it is asked for, once it is allowed to. */
export function loadPlotly() {
  running ??= allowed.then(runPlotly);
  return running;
}

/** Whether plots can be drawn at once. */
export const isPlotlyRunning = () => window.Plotly !== undefined;

function runPlotly() {
  return new Promise((resolve, reject) => {
    const fail = () => reject(new Error("the plotting script could not be loaded; reload the page"));
    const script = document.createElement("script");
    script.src = ADDRESS;
    script.addEventListener("load", () => (window.Plotly ? resolve(window.Plotly) : fail()));
    script.addEventListener("error", fail);
    document.head.append(script);
  });
}

/** What the plots have in common: they fill `box`, in the colours and letters of the page. */
export function baseLayout(box, margin) {
  const theme = themeColours();
  return {
    width: box.clientWidth, height: box.clientHeight, margin: scaled(margin, textScale()),
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: false,
    font: { family: theme.font, size: 11 * textScale(), color: theme.quiet }, hovermode: "closest",
    hoverlabel: { bgcolor: theme.surface, bordercolor: theme.line, font: { color: theme.text } },
  };
}

/** An axis that cannot be moved, with a title. */
export function fixedAxis(title) {
  const theme = themeColours();
  return {
    title: { text: title, standoff: 4 }, gridcolor: theme.grid, linecolor: theme.line,
    zeroline: false, fixedrange: true,
  };
}

/** Draws into `box`, unless it is out of sight; resolves to whether it did. */
export async function drawPlot(box, traces, layout) {
  if (box.clientWidth === 0) return false;
  const Plotly = await loadPlotly();
  // Of another size, Plotly would leave a legend the room that it took before.
  if (box.layout && (box.layout.width !== layout.width || box.layout.height !== layout.height)) {
    Plotly.purge(box);
  }
  await Plotly.react(box, traces, layout, { displayModeBar: false, responsive: false });
  return true;
}

// Plotly reads a little HTML in names and hover texts; names come from files.
export const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/**
 * A matrix of signed values: blue below zero, orange above, `limit` the strongest shade. The page tells
 * the colours beside the plot; a saved picture has a bar of them, with this title.
 */
export function signedHeatmap({ x, y, z, limit, scaleTitle, ...rest }) {
  return {
    type: "heatmap", x, y, z, zmin: -limit, zmax: limit, showscale: false, xgap: 1, ygap: 1,
    colorscale: divergingScale(), colorbar: colourBar(scaleTitle), ...rest,
  };
}

/** The bar of colours of a saved picture. */
export const colourBar = (title) => ({ title: { text: title, side: "right" }, thickness: 10, outlinewidth: 0 });

/** Dots in cells `[[x, y], ...]` of a matrix; dark with a light rim, they show on every shade. */
export function cellDots(cells) {
  return {
    type: "scatter", mode: "markers", hoverinfo: "skip", x: cells.map(([x]) => x), y: cells.map(([, y]) => y),
    marker: { size: 4 * textScale(), color: "#111417", line: { width: 1, color: "#ffffff" } },
  };
}

/** An axis of names, each of which is written. */
export function categoryAxis(title = "") {
  return {
    type: "category", title: { text: title, standoff: 4 }, fixedrange: true, showgrid: false, zeroline: false,
    ticks: "", tickmode: "linear", tickangle: 0, tickfont: { size: 10 * textScale() },
  };
}
