// Choices of files and of what they hold.

/** Fills a select with `[[value, label], ...]` and chooses one. */
export function fillSelect(id, options, value) {
  const select = document.getElementById(id);
  select.replaceChildren(...options.map(([key, label]) => new Option(label, key)));
  select.value = value;
}

/** The file whose id the view has under a name, or else the first one. */
export function pickFile(view, name, files) {
  const id = view.pick(name, files.map((file) => file.id));
  return files.find((file) => file.id === id);
}

/** Fills a select with files and hides its field where there is no choice. */
export function offerFiles(id, files, chosen) {
  fillSelect(id, files.map((file) => [file.id, file.label]), chosen?.id);
  document.getElementById(`${id}-field`).hidden = files.length < 2;
}
