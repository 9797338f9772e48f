// Plotly arrives on its own: list and frames do not wait for its megabytes.

const script = document.getElementById("plotly");

/** Resolves to Plotly once its script has run. */
export const plotly = new Promise((resolve, reject) => {
  const fail = () => reject(new Error("the plotting script could not be loaded; reload the page"));
  if (window.Plotly) resolve(window.Plotly);
  script.addEventListener("load", () => (window.Plotly ? resolve(window.Plotly) : fail()));
  script.addEventListener("error", fail);
});
