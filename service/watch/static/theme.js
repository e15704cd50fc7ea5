// Runs before anything is drawn, so that nothing flashes: the choice of an earlier visit, else the system's.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("tidecast-theme");
  } catch {
    // Storage may be turned off; then the system's colours hold.
  }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
