// The line that marks the current step in a plot over time, and the pointer that moves it.

/** Calls `onStep(step)` when the reader clicks or drags; `plot` is a Plotly element in `box`. */
export class StepCursor {
  constructor(box, plot, onStep) {
    this.box = box;
    this.plot = plot;
    this.onStep = onStep;
    this.length = 0;
    this.step = 0;
    this.line = Object.assign(document.createElement("div"), { className: "cursor", hidden: true });
    box.append(this.line);
    this.#connectPointer();
  }

  /** Tells how many steps the plot shows; 0 when there is none. */
  setLength(length) {
    this.length = length;
    this.show(this.step);
  }

  /** Moves the line; far quicker than drawing it with Plotly. */
  show(step) {
    this.step = step;
    const axis = this.plot._fullLayout?.xaxis;
    this.line.hidden = !axis || this.length === 0 || step >= this.length;
    if (this.line.hidden) return;
    const { t, h } = this.plot._fullLayout._size;
    this.line.style.top = `${t}px`;
    this.line.style.height = `${h}px`;
    this.line.style.transform = `translateX(${axis._offset + axis.l2p(step)}px)`;
  }

  #connectPointer() {
    const jump = (event) => {
      const axis = this.plot._fullLayout?.xaxis;
      if (!axis || this.length === 0) return;
      const x = event.clientX - this.plot.getBoundingClientRect().left - axis._offset;
      this.onStep(Math.min(Math.max(Math.round(axis.p2l(x)), 0), this.length - 1));
    };
    this.box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.box.setPointerCapture(event.pointerId);
      jump(event);
    });
    this.box.addEventListener("pointermove", (event) => {
      if (this.box.hasPointerCapture(event.pointerId)) jump(event);
    });
  }
}
