// Draws every chart in the colours of the reader's scheme, and again when that changes.
"use strict";
(() => {
  const templates = JSON.parse(document.getElementById("templates").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, displaylogo: false, responsive: true, showTips: false };

  const draw = (plot) => {
    const figure = JSON.parse(plot.nextElementSibling.textContent);
    figure.layout.template = templates[dark.matches ? "dark" : "light"];
    Plotly.react(plot, figure.data, figure.layout, config);
  };

  // A chart in a closed section has no width yet: it is drawn when the section opens.
  const drawIn = (root) => {
    for (const plot of root.querySelectorAll(".plot")) {
      if (!plot.closest("details:not([open])")) draw(plot);
    }
  };

  for (const section of document.querySelectorAll("details")) {
    section.addEventListener("toggle", () => section.open && drawIn(section));
  }
  dark.addEventListener("change", () => drawIn(document));
  drawIn(document);
})();
