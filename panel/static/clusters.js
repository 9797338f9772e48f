// Behaviours: how many samples show each, how clear they are, and samples near their centres.

import { fetchArrays, fetchKept } from "./api.js";
import { toImage } from "./player.js";
import { count, number, plural } from "./words.js";

const MAX_STRIP_FRAMES = 8;
const SIGNS_OF_ACTIONS = 2;
export const ALL = "all";
const element = (id) => document.getElementById(id);

/** Calls `onChoose(group)` with "all" or a number, and `onOpen(sampleId, step)`. */
export class Clusters {
  constructor({ onChoose, onOpen }) {
    this.onChoose = onChoose;
    this.onOpen = onOpen;
    this.observer = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) if (isIntersecting) this.#drawStrip(target);
    });
  }

  /** Shows a file of clusters, one of which is chosen. */
  async show(file, group) {
    if (file === this.file && group === this.group) return;
    const samples = await fetchKept(`api/behaviours/${file.id}/samples`);
    Object.assign(this, { file, group, samples });
    element("clusters-note").textContent = describeClusters(file);
    const rows = [ALL, ...file.behaviours.keys()].map((name) => this.#row(`${name}`, group));
    element("clusters").replaceChildren(...rows);
    this.#showExemplars(group);
  }

  /** Columns for a table: one row per behaviour. */
  table() {
    const { behaviours, action_names: names } = this.file;
    const column = (read) => behaviours.map(read);
    return {
      behaviour: column((_, behaviour) => behaviour), samples: column((one) => one.num_samples),
      steps: column((one) => one.num_steps), purity: column((one) => one.purity ?? ""),
      exemplars: column((one) => one.exemplars.join(" ")),
      ...Object.fromEntries(names.map((name, action) =>
        [`share of ${name}`, column((_, behaviour) => this.#shareOf(behaviour, action))])),
    };
  }

  #shareOf(behaviour, action) {
    const { data, shape: [, numActions] } = this.samples.action_share;
    return data[behaviour * numActions + action];
  }

  #row(name, chosen) {
    const { behaviours, num_samples: total, action_names: names } = this.file;
    const one = name === ALL ? { num_samples: total } : behaviours[Number(name)];
    const row = document.createElement("button");
    row.type = "button";
    row.className = "cluster";
    row.dataset.group = name;
    row.setAttribute("aria-pressed", String(name === chosen));
    const bar = Object.assign(document.createElement("span"), { className: "bar" });
    bar.append(document.createElement("i"));
    bar.firstChild.style.width = `${(100 * one.num_samples) / Math.max(total, 1)}%`;
    const actions = name === ALL ? "" : names
      .map((action, index) => [action, this.#shareOf(Number(name), index)])
      .sort((a, b) => b[1] - a[1]).slice(0, SIGNS_OF_ACTIONS)
      .map(([action, share]) => `${action} ${Math.round(100 * share)} %`).join(", ");
    const purity = one.purity === undefined || one.purity === null ? "" : `purity ${number(one.purity, 2)}`;
    row.append(span(name === ALL ? "All samples" : `Behaviour ${name}`), bar,
      span(count(one.num_samples), "numeric"), span([purity, actions].filter(Boolean).join(" · "), "quiet"));
    row.addEventListener("click", () => this.onChoose(name));
    return row;
  }

  /** Of one behaviour all exemplars, of all behaviours the first of each. */
  #showExemplars(group) {
    const { behaviours } = this.file;
    const one = behaviours[Number(group)];
    const shown = group !== ALL && one
      ? one.exemplars.map((sample, position) => ({ behaviour: Number(group), position, sample }))
      : behaviours.flatMap(({ exemplars: [sample] }, behaviour) =>
        (sample === undefined ? [] : [{ behaviour, position: 0, sample }]));
    this.observer.disconnect();
    element("exemplars").replaceChildren(...shown.map((exemplar) => this.#strip(exemplar)));
    for (const strip of element("exemplars").children) this.observer.observe(strip);
  }

  #strip({ behaviour, position, sample }) {
    const strip = document.createElement("button");
    strip.type = "button";
    strip.className = "strip";
    Object.assign(strip.dataset, { behaviour, position, sample });
    strip.ariaLabel = `Open sample ${sample}, near the centre of behaviour ${behaviour}`;
    // Until it is drawn, the place that square frames will take.
    const canvas = Object.assign(document.createElement("canvas"), { width: MAX_STRIP_FRAMES, height: 1 });
    strip.append(canvas, span(`behaviour ${behaviour} · sample ${sample}`));
    strip.addEventListener("click", () => this.onOpen(sample, 0));
    return strip;
  }

  async #drawStrip(strip) {
    this.observer.unobserve(strip);
    const { behaviour, position } = strip.dataset;
    const path = `api/behaviours/${this.file.id}/exemplars/${behaviour}/${position}`;
    // A strip that cannot be had stays empty; the file's own error is told above the page.
    const arrays = await fetchArrays(path).catch(() => null);
    if (!arrays) return;
    const { data, shape: [length, height, width, channels] } = arrays.frames;
    const shown = evenly(length, MAX_STRIP_FRAMES);
    const canvas = strip.querySelector("canvas");
    Object.assign(canvas, { width: width * MAX_STRIP_FRAMES, height });
    const context = canvas.getContext("2d");
    const size = height * width * channels;
    shown.forEach((step, place) => {
      const frame = data.subarray(step * size, (step + 1) * size);
      context.putImageData(toImage({ data: frame, height, width, channels }), place * width, 0);
    });
    strip.lastChild.textContent += ` · steps ${shown.join(", ")}`;
    strip.dataset.drawn = "true";
  }
}

/** Steps spread evenly over an episode, the first and the last among them. */
function evenly(length, most) {
  const shown = Math.min(length, most);
  return Array.from({ length: shown }, (_, at) => Math.round((at * (length - 1)) / Math.max(shown - 1, 1)));
}

function describeClusters({ behaviours, num_samples: total, label_steps: steps, stability }) {
  const found = `${plural(behaviours.length, "behaviour")} of ${plural(total, "sample")}; a sample's is the ` +
    `commonest cluster of its first ${plural(steps, "step")}, purity their share in it.`;
  if (!stability) return `${found} Stability was not measured.`;
  const { mean, deviation, control } = stability;
  return `${found} Stability: adjusted Rand index of halves ${number(mean, 2)} ± ${number(deviation, 2)}, ` +
    `of data without clusters ${number(control, 2)}.`;
}

function span(text, className = "") {
  return Object.assign(document.createElement("span"), { textContent: text, className });
}
