// How well mean Jacobians agree with what components do, by lag, beside what chance gives.

import { QUALITATIVE, themeColours } from "./colours.js";
import { baseLayout, drawPlot, fixedAxis } from "./plotting.js";
import { textScale } from "./words.js";

const MARGIN = { l: 66, r: 14, t: 8, b: 40 };
const SIGNIFICANT = 0.05;
const NAMES = { passed: "with the environment", cut: "environment cut" };
const DASHES = ["solid", "dash"];

/** Traces of `{file, arrays, dynamics, measure}` over the lags, and the same as a table. */
export function agreementCurves({ file, arrays, dynamics, measure }) {
  const { lags, environment_gradients: variants, measures } = file;
  const shape = arrays.observed.shape;
  const row = ({ data }, leading, variant) => {
    const place = ((leading * shape[0] + file.dynamics.indexOf(dynamics)) * shape[1] + variant) * shape[2] +
      measures.indexOf(measure);
    return Array.from(data.subarray(place * lags.length, (place + 1) * lags.length));
  };
  const table = { lag: lags };
  const traces = variants.flatMap((name, variant) => {
    const colour = QUALITATIVE[variant];
    const observed = row(arrays.observed, 0, variant);
    const [expected, q] = [arrays.expected, arrays.q].map((values) => row(values, 0, variant));
    Object.assign(table, { [`${name} observed`]: observed, [`${name} by chance`]: expected, [`${name} q`]: q });
    const line = (values, label, extra) => ({
      type: "scatter", mode: "lines+markers", name: label, x: lags, y: values,
      hovertemplate: `lag %{x}: %{y:.3f}<extra>${label}</extra>`, ...extra,
    });
    return [
      line(observed, NAMES[name] ?? name, {
        line: { color: colour, width: 2 * textScale(), dash: DASHES[variant] },
        marker: {
          size: 8 * textScale(),
          color: q.map((value) => (value < SIGNIFICANT ? colour : themeColours().surface)),
          line: { color: colour, width: 2 * textScale() },
        },
      }),
      line(expected, `by chance, ${NAMES[name] ?? name}`, {
        mode: "lines", line: { color: colour, width: textScale(), dash: "dot" },
      }),
    ];
  });
  return { traces, table };
}

export function drawAgreement(box, traces, title) {
  return drawPlot(box, traces, {
    ...baseLayout(box, MARGIN), showlegend: true, legend: { orientation: "h", y: -0.26, yanchor: "top" },
    xaxis: { ...fixedAxis("lag (steps)"), dtick: 1 }, yaxis: fixedAxis(inLines(title)),
  });
}

// In one line the longest title of a measure is longer than the axis.
const inLines = (title) => title.replace(/^(.{14,}?) /, "$1<br>");
