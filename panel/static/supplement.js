// Runs before main.js in an exported page and takes out what it holds no data for.

const KEPT_VIEWS = new Set(["components", "files"]);

for (const tab of document.querySelectorAll("#tabs [role=tab]")) {
  if (KEPT_VIEWS.has(tab.dataset.view)) continue;
  document.getElementById(tab.getAttribute("aria-controls")).hidden = true;
  tab.remove();
}
document.getElementById("filters").hidden = true;
