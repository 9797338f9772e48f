// Shows another rollout in lockstep with the open one, and how far the two differ.

import { fetchArrays } from "./api.js";
import { counterparts, differences, episodePath, framesOf } from "./comparison.js";
import { COMMANDS, code } from "./notices.js";
import { softmaxRows } from "./player.js";
import { describeRollout } from "./rollout_list.js";

const element = (id) => document.getElementById(id);

/** Reads and writes `beside` in `view`: what the open rollout is shown beside. */
export class ComparisonView {
  constructor(view, player, traces) {
    this.view = view;
    this.player = player;
    this.traces = traces;
    this.turn = 0;
    element("beside").addEventListener("change", ({ target }) =>
      this.view.update({ beside: target.value }));
  }

  /** Offers the counterparts of a rollout among `entries` and shows the one that is asked for. */
  async open(entry, steps, entries) {
    this.own = { entry, steps, length: entry.length, frames: this.player.sample.frames };
    this.choices = counterparts(entry, entries);
    element("beside-field").hidden = this.choices.length === 0;
    showUnknownReality(entry);
    element("beside").replaceChildren(
      new Option("nothing", ""), ...this.choices.map(({ key, label }) => new Option(label, key)));
    await this.show();
  }

  async show() {
    const turn = ++this.turn;
    const asked = this.view.pick("beside", this.choices.map(({ key }) => key), "");
    const chosen = this.choices.find(({ key }) => key === asked);
    element("beside").value = chosen?.key ?? "";
    if (!chosen) {
      this.player.setOther(null);
      if (this.traces.other) await this.traces.setOther(null);
      return;
    }
    const { entry, offset, label } = chosen;
    const steps = await fetchArrays(`${episodePath(entry)}/steps`);
    if (turn !== this.turn) return;
    steps.probabilities = softmaxRows(steps.action_logits);
    const other = {
      entry, steps, offset, length: entry.length, frames: framesOf(entry), caption: label,
    };
    this.player.setOther(other);
    element("other-box").title = describeRollout(entry);
    await this.traces.setOther(other);
    other.differences = await differences(this.own, other);
    if (turn === this.turn) await this.traces.setOther(other);
  }
}

/** Says how to record what really happens after the actions of a sample, where nobody has yet. */
function showUnknownReality({ dataset, sourceEpisodeId, twinOf }) {
  const note = element("beside-note");
  note.hidden = dataset.kind !== "simulated" || sourceEpisodeId < 0 || twinOf >= 0 ||
    dataset.relations.reality.length > 0;
  note.replaceChildren("The same actions were not played in the real environment yet. Play them with ",
    code(COMMANDS.trust));
}
