// What the shades of a plot stand for: numbers, with the colours between them.

/**
 * Fills a box with a title, and numbers (as text) with the colours from each to the next between them:
 * evenly spaced `colours`, the first that of the first number, the last that of the last. `note`
 * follows them.
 */
export function showScale(box, { title, numbers, colours, note = "" }) {
  const perPart = (colours.length - 1) / (numbers.length - 1);
  const parts = numbers.flatMap((text, at) => {
    const shades = colours.slice(at * perPart, (at + 1) * perPart + 1);
    return at === numbers.length - 1 ? [words(text)] : [words(text), ramp(shades)];
  });
  const scale = Object.assign(document.createElement("span"), { className: "scale" });
  scale.append(...parts);
  box.replaceChildren(words(title), scale, ...(note ? [words(note)] : []));
}

function ramp(colours) {
  const bar = Object.assign(document.createElement("i"), { className: "gradient" });
  bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  return bar;
}

const words = (text) => Object.assign(document.createElement("span"), { textContent: text });
