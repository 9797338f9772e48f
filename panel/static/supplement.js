// Runs before main.js in an exported page and takes out what it holds no data for.

const KEPT_VIEWS = new Set(["components", "files"]);

for (const tab of document.querySelectorAll("#tabs [role=tab]")) {
  if (KEPT_VIEWS.has(tab.dataset.view)) continue;
  document.getElementById(tab.getAttribute("aria-controls")).hidden = true;
  tab.remove();
}
document.getElementById("filters").hidden = true;
// What it was not given there may well be: the style sheet hides the lines that tell how to make it.
document.body.dataset.supplement = "";
