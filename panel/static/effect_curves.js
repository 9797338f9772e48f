// The course of an effect over the steps, one plot for each world, beside controls and predictions.

import { QUALITATIVE, themeColours } from "./colours.js";
import { baseLayout, fixedAxis } from "./plotting.js";
import { textScale } from "./words.js";

const MARGIN = { l: 52, r: 12, t: 24, b: 40 };
const GAP = 0.16;
export const TESTED = "tested";
export const SIGN_FLIP = "sign_flip";
export const WORLDS = { simulated: "simulation", real: "reality" };
const PREDICTED = {
  readout: { name: "predicted by the heads", colour: QUALITATIVE[1], dash: "dot" },
  gradient: { name: "predicted by the gradient", colour: QUALITATIVE[2], dash: "dashdot" },
};

/** Traces, layout and table of one measure; `arrays` are those of `api/effects/ID/rows/MEASURE`. */
export class EffectCurves {
  constructor(file, arrays) {
    this.file = file;
    this.arrays = arrays;
    this.steps = Array.from({ length: file.num_steps }, (_, step) => step);
    this.tested = file.variants.indexOf(TESTED);
  }

  traces() {
    return this.file.worlds.flatMap((world, w) => [
      this.#band(w), ...this.#controls(w), ...this.#predictions(world, w),
      this.#line(w, this.#row("effect", w, this.tested), "observed", {
        mode: "lines+markers", marker: { size: 5 * textScale() },
        line: { color: QUALITATIVE[0], width: 2.5 * textScale() },
      }),
    ]);
  }

  layout(box) {
    const { worlds } = this.file;
    const width = (1 - GAP * (worlds.length - 1)) / worlds.length;
    const start = (w) => w * (width + GAP);
    // Each world has a scale of its own: the effects of one would else flatten those of the other.
    const axes = worlds.flatMap((_, w) => {
      const number = w === 0 ? "" : w + 1;
      return [
        [`xaxis${number}`, { ...fixedAxis("step"), domain: [start(w), start(w) + width], anchor: `y${number}` }],
        [`yaxis${number}`, { ...fixedAxis(""), anchor: `x${number}`, nticks: 6 }],
      ];
    });
    return {
      ...baseLayout(box, MARGIN), showlegend: true, ...Object.fromEntries(axes),
      legend: { orientation: "h", y: -0.24, yanchor: "top", font: { size: 10 * textScale() } },
      annotations: worlds.map((world, w) => ({
        text: WORLDS[world] ?? world, x: start(w) + width / 2, xref: "paper", y: 1, yref: "paper",
        yanchor: "bottom", showarrow: false, font: { size: 11 * textScale(), color: themeColours().text },
      })),
    };
  }

  /** One column for each variant and prediction in each world. */
  table() {
    const { worlds, variants, predictions } = this.file;
    const table = { step: this.steps };
    worlds.forEach((world, w) => {
      variants.forEach((variant, v) => { table[`${world} ${variant}`] = this.#row("effect", w, v); });
      for (const bound of ["lower", "upper"]) table[`${world} ${bound}`] = this.#row(bound, w, this.tested);
    });
    predictions.forEach((prediction, p) => { table[`predicted ${prediction}`] = this.#predicted(p); });
    return table;
  }

  #row(name, world, variant) {
    const { data, shape: [, numVariants, numSteps] } = this.arrays[name];
    const place = (world * numVariants + variant) * numSteps;
    return Array.from(data.subarray(place, place + numSteps));
  }

  #predicted(prediction) {
    const { data, shape: [, numSteps] } = this.arrays.predicted;
    return Array.from(data.subarray(prediction * numSteps, (prediction + 1) * numSteps));
  }

  #line(w, y, name, style) {
    return {
      type: "scatter", mode: "lines", x: this.steps, y, name, legendgroup: name, showlegend: w === 0,
      ...(w > 0 && { xaxis: `x${w + 1}`, yaxis: `y${w + 1}` }), hovertemplate: `step %{x}: %{y:.3g}<extra>${name}</extra>`, ...style,
    };
  }

  #band(w) {
    const [lower, upper] = ["lower", "upper"].map((bound) => this.#row(bound, w, this.tested));
    return this.#line(w, [...upper, ...lower.toReversed()], "95% interval", {
      x: [...this.steps, ...this.steps.toReversed()], fill: "toself", fillcolor: `${QUALITATIVE[0]}2e`,
      line: { width: 0 }, hoverinfo: "skip", hovertemplate: undefined, showlegend: false,
    });
  }

  #controls(w) {
    const known = new Set();
    return this.file.variants.flatMap((variant, v) => {
      if (variant === TESTED) return [];
      const isFlip = variant === SIGN_FLIP;
      const name = isFlip ? "sign flip" : "random direction";
      const line = isFlip
        ? { color: QUALITATIVE[3], width: 2 * textScale(), dash: "dash" }
        : { color: themeColours().quiet, width: textScale() };
      const showlegend = w === 0 && !known.has(name);
      known.add(name);
      return [this.#line(w, this.#row("effect", w, v), name, { showlegend, line })];
    });
  }

  #predictions(world, w) {
    return this.file.predictions.flatMap((prediction, p) => {
      const predicted = this.#predicted(p);
      // The command can leave gradients out; a legend would name a line that is nowhere.
      if (!prediction.endsWith(`_${world}`) || !predicted.some(Number.isFinite)) return [];
      const { name, colour, dash } = PREDICTED[prediction.split("_")[0]] ?? PREDICTED.readout;
      return [this.#line(w, predicted, name, { line: { color: colour, width: 2 * textScale(), dash } })];
    });
  }
}
