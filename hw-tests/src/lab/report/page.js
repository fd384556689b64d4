// Filters the page by how tests ended and by words, and opens the test that a link points to.
"use strict";
(() => {
  const buttons = [...document.querySelectorAll(".bar button")];
  const words = document.querySelector(".bar input");
  const rows = [...document.querySelectorAll("[data-tests]")];
  const apply = () => {
    const pressed = buttons.find((b) => b.getAttribute("aria-pressed") === "true");
    const wanted = (pressed?.dataset.show ?? "").split(" ").filter(Boolean);
    const text = words.value.trim().toLowerCase();
    for (const row of rows) {
      const is = row.dataset.tests.split(" ");
      const status = wanted.length === 0 || wanted.some((w) => is.includes(w));
      row.hidden = !(status && row.dataset.words.includes(text));
    }
    for (const group of document.querySelectorAll("[data-group]")) {
      group.hidden = ![...group.querySelectorAll("[data-tests]")].some((r) => !r.hidden);
    }
    document.querySelector("#none").hidden = rows.some((r) => !r.hidden);
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      apply();
    });
  }
  words.addEventListener("input", apply);
  const open = () => {
    const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (at instanceof HTMLDetailsElement) {
      at.open = true;
      at.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();
})();
