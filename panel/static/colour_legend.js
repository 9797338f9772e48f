// What the shades of a plot stand for: numbers, with the colours between them.

/**
 * Fills a box with a title, and numbers (as text) with the colours from each to the next between them:
 * evenly spaced `colours`, the first that of the first number, the last that of the last. `note`
 * follows them.
 */
export function showScale(box, { title, numbers, colours, note = "" }) {
  const parts = scaleParts(numbers, colours).map(({ text, shades }) =>
    (text === undefined ? ramp(shades) : words(text)));
  const scale = Object.assign(document.createElement("span"), { className: "scale" });
  scale.append(...parts);
  box.replaceChildren(words(title), scale, ...(note ? [words(note)] : []));
}

/** Numbers as `{text}`, and between two of them `{shades}`: the colours from one to the other. */
export function scaleParts(numbers, colours) {
  const perPart = (colours.length - 1) / (numbers.length - 1);
  return numbers.flatMap((text, at) => {
    const shades = colours.slice(at * perPart, (at + 1) * perPart + 1);
    return at === numbers.length - 1 ? [{ text }] : [{ text }, { shades }];
  });
}

function ramp(colours) {
  const bar = Object.assign(document.createElement("i"), { className: "gradient" });
  bar.style.background = `linear-gradient(to right, ${colours.join(", ")})`;
  return bar;
}

const words = (text) => Object.assign(document.createElement("span"), { textContent: text });
