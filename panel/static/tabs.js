// The views of the right-hand card: one is open at a time.

/** Shows the view named in the address and calls `onShow(name)` whenever another one opens. */
export class Tabs {
  constructor(view, onShow) {
    this.view = view;
    this.onShow = onShow;
    this.tabs = [...document.querySelectorAll("#tabs [role=tab]")];
    for (const tab of this.tabs) {
      tab.addEventListener("click", () => this.view.update({ view: tab.dataset.view }));
      tab.addEventListener("keydown", (event) => this.#pressKey(event));
    }
    this.show();
  }

  get current() {
    const names = this.tabs.map(({ dataset }) => dataset.view);
    return this.view.pick("view", names);
  }

  /** Whether there is such a view. */
  has(name) {
    return this.tabs.some(({ dataset }) => dataset.view === name);
  }

  show() {
    for (const tab of this.tabs) {
      const isOpen = tab.dataset.view === this.current;
      tab.ariaSelected = String(isOpen);
      tab.tabIndex = isOpen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !isOpen;
    }
    this.onShow(this.current);
  }

  // As readers of tab lists expect: arrows move between the tabs.
  #pressKey(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1 };
    const position = this.tabs.indexOf(event.currentTarget);
    const next = this.tabs[(position + (moves[event.key] ?? 0) + this.tabs.length) % this.tabs.length];
    if (next === event.currentTarget) return;
    event.stopPropagation();
    event.preventDefault();
    this.view.update({ view: next.dataset.view });
    next.focus();
  }
}
