// Saves what a plot shows: as a picture, as a drawing, as a table.

import { themeColours } from "./colours.js";
import { loadPlotly } from "./plotting.js";
import { addLegend } from "./saved_legend.js";

const PIXEL_RATIO = 2;
const SVG = "http://www.w3.org/2000/svg";

/**
 * Adds buttons to `box` that save a plot under `name()`.
 *
 * `plot` is a Plotly element, `layers()` the canvases that lie beneath it, `legend()` what its colours
 * stand for where Plotly does not tell (see `addLegend`; null for nothing), `table()` its content as
 * columns `{name: values}`. Without a plot there is only the table to save.
 */
export function addExport(box, { label, name, plot, table, layers = () => [], legend = () => null }) {
  const formats = {
    ...(plot && {
      PNG: () => picture(plot, layers(), legend()),
      SVG: async () =>
        new Blob([(await drawing(plot, layers(), legend())).text], { type: "image/svg+xml" }),
    }),
    CSV: async () => new Blob([csv(table())], { type: "text/csv" }),
  };
  addSaveMenu(box, { label, name, formats });
}

/**
 * Adds a menu to `box` with a button per format; `formats` are `{PNG: async () => blob}`, and nothing
 * is saved where there is no blob. Returns the menu.
 */
export function addSaveMenu(box, { label, name, formats }) {
  const menu = document.createElement("details");
  menu.className = "export";
  const summary = Object.assign(document.createElement("summary"), {
    textContent: "Save", ariaLabel: `Save ${label}`,
  });
  const choices = document.createElement("div");
  for (const [format, make] of Object.entries(formats)) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: format });
    button.addEventListener("click", async () => {
      menu.open = false;
      const file = `${name()}.${format.toLowerCase()}`;
      const blob = await make();
      if (blob) save(blob, file);
    });
    choices.append(button);
  }
  menu.append(summary, choices);
  // The plot beneath takes a press as a wish to move.
  menu.addEventListener("pointerdown", (event) => event.stopPropagation());
  box.append(menu);
  return menu;
}

/** Columns as comma-separated text with a head line; shorter columns end in empty fields. */
export function csv(columns) {
  const field = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const names = Object.keys(columns);
  const rows = Math.max(0, ...names.map((name) => columns[name].length));
  const lines = Array.from({ length: rows }, (_, row) => names.map((name) => field(columns[name][row])));
  return [names.map(field), ...lines].map((line) => `${line.join(",")}\n`).join("");
}

/** The plot as SVG `{text, width, height}`, with its ground, the layers beneath it and its legend. */
async function drawing(plot, layers, legend) {
  const Plotly = await loadPlotly();
  const { width, height } = plot._fullLayout;
  const address = await Plotly.toImage(withColourBars(plot), { format: "svg", width, height });
  const text = decodeURIComponent(address.slice(address.indexOf(",") + 1));
  const image = new DOMParser().parseFromString(text, "image/svg+xml");
  const add = (tag, attributes) => {
    const node = image.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const root = image.documentElement;
  const total = legend ? addLegend(root, legend, { width, height }) : height;
  const ground = add("rect", { width, height: total, fill: themeColours().surface });
  const beneath = layers.map((canvas) => add("image", {
    x: canvas.offsetLeft, y: canvas.offsetTop, width: canvas.offsetWidth, height: canvas.offsetHeight,
    href: canvas.toDataURL(),
  }));
  root.prepend(ground, ...beneath);
  return { text: new XMLSerializer().serializeToString(image), width, height: total };
}

/** The plot with the bars of colours that stand beside it in the page. */
function withColourBars(plot) {
  if (!plot.data.some(({ type }) => type === "heatmap")) return plot;
  const data = plot.data.map((trace) => (trace.type === "heatmap" ? { ...trace, showscale: true } : trace));
  return { data, layout: plot.layout };
}

async function picture(plot, layers, legend) {
  const { text, width, height } = await drawing(plot, layers, legend);
  const image = new Image(width * PIXEL_RATIO, height * PIXEL_RATIO);
  image.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = new OffscreenCanvas(width * PIXEL_RATIO, height * PIXEL_RATIO);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/png" });
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replaceAll(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
