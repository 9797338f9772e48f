// Small frames of many steps side by side, each a button that opens its rollout there.

import { fetchArrays } from "./api.js";
import { episodePath } from "./comparison.js";
import { toImage } from "./player.js";

/** Calls `onOpen(entry, step)`. */
export class Gallery {
  constructor(box, onOpen) {
    this.box = box;
    this.onOpen = onOpen;
    this.observer = new IntersectionObserver((seen) => {
      for (const { target, isIntersecting } of seen) if (isIntersecting) this.#draw(target);
    });
  }

  /** Shows steps `{entry, step, caption}`; frames are fetched when they come into sight. */
  show(items) {
    this.observer.disconnect();
    this.itemOf = new Map();
    this.box.replaceChildren(...items.map((item) => this.#button(item)));
    for (const button of this.box.children) this.observer.observe(button);
  }

  #button(item) {
    const { entry, step, caption } = item;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "thumbnail";
    const canvas = document.createElement("canvas");
    [canvas.height, canvas.width] = entry.dataset.obs_shape;
    const title = document.createElement("span");
    title.textContent = `${entry.dataset.kind === "real" ? "real" : "sim."} ${entry.episodeId}, step ${step}`;
    const text = document.createElement("span");
    text.textContent = caption;
    button.title = `${entry.dataset.label} · ${caption}`;
    button.append(canvas, title, text);
    button.addEventListener("click", () => this.onOpen(entry, step));
    this.itemOf.set(button, item);
    return button;
  }

  async #draw(button) {
    this.observer.unobserve(button);
    const { entry, step } = this.itemOf.get(button);
    const path = `${episodePath(entry)}/frames?start=${step}&stop=${step + 1}`;
    // A thumbnail that cannot be had stays empty; opening its rollout says why.
    const arrays = await fetchArrays(path).catch(() => null);
    if (!arrays) return;
    const [, height, width, channels] = arrays.frames.shape;
    const image = toImage({ data: arrays.frames.data, height, width, channels });
    button.querySelector("canvas").getContext("2d").putImageData(image, 0, 0);
    button.dataset.drawn = "true";
  }
}
