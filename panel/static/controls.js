// Choices of files and of what they hold.

/** Fills a select with `[[value, label], ...]` and chooses one. */
export function fillSelect(id, options, value) {
  const select = document.getElementById(id);
  select.replaceChildren(...options.map(([key, label]) => new Option(label, key)));
  select.value = value;
}

/** The file of this id, or else the first one. */
export const pickFile = (files, id) => files.find((file) => file.id === id) ?? files[0];

/** Fills a select with files and hides its field where there is no choice. */
export function offerFiles(id, files, chosen) {
  fillSelect(id, files.map((file) => [file.id, file.label]), chosen?.id);
  document.getElementById(`${id}-field`).hidden = files.length < 2;
}

/** The asked value where it is among those known, or else the first of them. */
export const pickKnown = (known, asked) => (known.includes(asked) ? asked : known[0]);
