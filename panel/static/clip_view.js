// Saves the open rollout as a moving picture, frame by frame in the browser: the server has nothing
// to do with it, and what is shown (saliency, another rollout beside) is what is saved.

import { RequestError } from "./api.js";
import { Clip } from "./clip.js";
import { addSaveMenu } from "./export.js";
import { GifEncoder } from "./gif.js";
import { Mp4Encoder } from "./mp4.js";
import { code } from "./notices.js";

const ENCODERS = { GIF: GifEncoder, MP4: Mp4Encoder };
const element = (id) => document.getElementById(id);

/** Adds a menu to the player's controls; `guard(action)` shows what goes wrong. */
export class ClipView {
  constructor(player, guard) {
    this.player = player;
    this.progress = element("saving");
    element("cancel-saving").addEventListener("click", () => { this.isCancelled = true; });
    const formats = Object.fromEntries(Object.keys(ENCODERS).map((format) =>
      [format, () => guard(() => this.#make(format))]));
    const menu = addSaveMenu(document.querySelector(".controls"), {
      label: "moving picture", name: () => this.#name(), formats,
    });
    this.#addHint(menu);
  }

  #name() {
    const { dataset, episodeId } = this.player.sample.entry;
    return `${dataset.kind}-${episodeId}`;
  }

  /** The whole rollout in one format; nothing when the reader cancels. */
  async #make(format) {
    if (!this.progress.hidden) throw new RequestError("Another moving picture is being saved; wait for it.");
    const { sample, overlay, isBeside, other } = this.player;
    const clip = new Clip({ sample, overlay, isBeside, other });
    const { width, height } = clip.canvas;
    const encoder = new ENCODERS[format]({ width, height, fps: Number(element("speed").value) });
    const bar = this.progress.querySelector("progress");
    Object.assign(bar, { max: clip.length, value: 0 });
    this.isCancelled = false;
    this.progress.hidden = false;
    try {
      for (let step = 0; step < clip.length; step += 1) {
        await clip.draw(step);
        await encoder.add(clip.canvas);
        bar.value = step + 1;
        // Lets the page answer in between.
        await new Promise((resolve) => { setTimeout(resolve); });
        if (this.isCancelled) return null;
      }
      return await encoder.finish();
    } finally {
      encoder.close?.();
      this.progress.hidden = true;
    }
  }

  /** How the open rollout becomes a page; an exported page is one already. */
  #addHint(menu) {
    if ("dreamscopeSupplement" in window) return;
    const hint = Object.assign(document.createElement("p"), { className: "quiet" });
    menu.querySelector("div").append(hint);
    menu.addEventListener("toggle", () => {
      if (!this.player.sample) return;
      const { dataset, episodeId } = this.player.sample.entry;
      hint.replaceChildren("As a page without a server: ",
        code(`python -m panel export ${dataset.label}:${episodeId} --out DIR`));
    });
  }
}
