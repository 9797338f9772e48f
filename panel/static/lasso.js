// A free line drawn around points, and which points lie inside it.

const MAX_CORNERS = 32;
const DIGITS = 4;
const MIN_PIXELS_APART = 4;

/** Lets the reader draw over `box`; calls `onDraw([[x, y], ...])` in pixels of the box. */
export class Lasso {
  constructor(box, onDraw) {
    this.canvas = Object.assign(document.createElement("canvas"), { className: "lasso", hidden: true });
    this.box = box;
    this.onDraw = onDraw;
    this.corners = null;
    this.canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.#continue(event));
    this.canvas.addEventListener("pointerup", () => this.#end());
    this.canvas.addEventListener("pointercancel", () => this.#stop());
  }

  /** While active, pointers draw instead of moving the plot beneath. */
  setActive(isActive) {
    this.canvas.hidden = !isActive;
    if (isActive && this.canvas.parentElement !== this.box) this.box.append(this.canvas);
    this.#stop();
  }

  #begin(event) {
    if (event.button !== 0) return;
    event.stopPropagation();
    this.canvas.setPointerCapture(event.pointerId);
    Object.assign(this.canvas, { width: this.box.clientWidth, height: this.box.clientHeight });
    this.corners = [[event.offsetX, event.offsetY]];
  }

  #continue(event) {
    if (!this.corners) return;
    const [x, y] = this.corners.at(-1);
    if (Math.hypot(event.offsetX - x, event.offsetY - y) < MIN_PIXELS_APART) return;
    this.corners.push([event.offsetX, event.offsetY]);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    context.lineWidth = 2;
    context.beginPath();
    for (const corner of this.corners) context.lineTo(...corner);
    context.stroke();
  }

  #end() {
    const corners = this.corners ?? [];
    this.#stop();
    if (corners.length >= 3) this.onDraw(corners);
  }

  #stop() {
    this.corners = null;
    this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
  }
}

/** Corners as text for the address: at most 32 of them, in few digits. */
export function formatCorners(corners) {
  const stride = Math.ceil(corners.length / MAX_CORNERS);
  return corners.filter((_, index) => index % stride === 0)
    .map((corner) => corner.map((value) => Number(value.toPrecision(DIGITS))).join(",")).join(";");
}

/** The inverse of `formatCorners`; null for a text that is no polygon. */
export function parseCorners(text) {
  const corners = (text ?? "").split(";").map((corner) => corner.split(",").map(Number));
  const isPolygon = corners.length >= 3 &&
    corners.every((corner) => corner.length === 2 && corner.every(Number.isFinite));
  return isPolygon ? corners : null;
}

/** Those of `rows` whose point (xs[row], ys[row]) lies inside the polygon (even-odd rule). */
export function rowsInside(corners, rows, xs, ys) {
  const [low, high] = [Math.min, Math.max].map((end) =>
    [0, 1].map((axis) => end(...corners.map((corner) => corner[axis]))));
  return rows.filter((row) => {
    const [x, y] = [xs[row], ys[row]];
    if (!(x >= low[0] && x <= high[0] && y >= low[1] && y <= high[1])) return false;
    let isInside = false;
    for (let at = 0, before = corners.length - 1; at < corners.length; before = at, at += 1) {
      const [x0, y0] = corners[at];
      const [x1, y1] = corners[before];
      if (y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) isInside = !isInside;
    }
    return isInside;
  });
}
