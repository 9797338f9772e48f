// Colours that stay apart for colour-blind readers, and those of the current theme.

// Okabe and Ito's qualitative set without black, ordered for contrast between neighbours.
export const QUALITATIVE = [
  "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#9a8700", "#8c8c8c",
];
// Beyond eight categories the marks change shape, so that colour and shape together tell them apart.
export const SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "x"];
/** Of what belongs to no cluster, or has no value. */
export const NOTHING = "#9aa0a6";

// Anchors of viridis (van der Walt and Smith).
const VIRIDIS = [
  "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58",
  "#b5de2b", "#fde725",
];
// Blue for negative, orange for positive; what is near nothing is near the ground of the page.
const DIVERGING_LIGHT = ["#1f5fa8", "#79a9d6", "#eef0f2", "#eea05a", "#b8480b"];
const DIVERGING_DARK = ["#9fd0ff", "#3f7fbf", "#2b323b", "#b9692a", "#ffbd80"];

// Read again when the theme changes: computed styles are dear to read at every step.
let knownColours = null;

export function themeColours() {
  if (knownColours) return knownColours;
  const style = getComputedStyle(document.documentElement);
  const names = ["text", "quiet", "line", "surface", "accent", "real", "simulated", "grid", "highlight"];
  const colours = Object.fromEntries(
    names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]),
  );
  colours.font = style.getPropertyValue("--font").trim();
  knownColours = colours;
  return colours;
}

const darkness = window.matchMedia("(prefers-color-scheme: dark)");
export const isDark = () => darkness.matches;
export const onThemeChange = (listener) => darkness.addEventListener("change", listener);
onThemeChange(() => { knownColours = null; });

/** Evenly spaced stops as Plotly wants them. */
export function colourScale(colours) {
  return colours.map((colour, index) => [index / (colours.length - 1), colour]);
}

/** As `colourScale`, but spaced by the square root of the value: small values differ in shade too. */
export function rootScale(colours) {
  return colours.map((colour, index) => [(index / (colours.length - 1)) ** 2, colour]);
}

export const sequentialScale = () => colourScale(VIRIDIS);
export const divergingColours = () => (isDark() ? DIVERGING_DARK : DIVERGING_LIGHT);
export const divergingScale = () => colourScale(divergingColours());

/** A scale in `count` even shades, each as [red, green, blue]. */
export function sampleScale(scale, count) {
  const context = new OffscreenCanvas(count, 1).getContext("2d");
  const ramp = context.createLinearGradient(0, 0, count, 0);
  for (const [at, colour] of scale) ramp.addColorStop(at, colour);
  context.fillStyle = ramp;
  context.fillRect(0, 0, count, 1);
  const { data } = context.getImageData(0, 0, count, 1);
  return Array.from({ length: count }, (_, shade) => [...data.subarray(4 * shade, 4 * shade + 3)]);
}

/** Colour and symbol of one category; −1 means that it belongs to no cluster. */
export function categoryMark(category, position) {
  if (category === -1) return { colour: NOTHING, symbol: "circle" };
  return {
    colour: QUALITATIVE[position % QUALITATIVE.length],
    symbol: SYMBOLS[Math.floor(position / QUALITATIVE.length) % SYMBOLS.length],
  };
}

/** A horizontal gradient as a CSS background. */
export const gradient = (scale) =>
  `linear-gradient(to right, ${scale.map(([at, colour]) => `${colour} ${at * 100}%`).join(", ")})`;
