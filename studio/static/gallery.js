// The gallery: how many pictures are selected, and the prompts of earlier pictures.
"use strict";

const selection = document.getElementById("selection");

function boxes() {
  return [...document.querySelectorAll("#gallery .tile-select")];
}

function countSelected() {
  const count = boxes().filter((box) => box.checked).length;
  const place = selection.querySelector("[data-selected]");
  place.textContent = count ? place.dataset.selected.replace("{n}", count) : "";
}

document.addEventListener("change", ({ target }) => {
  if (target.matches(".tile-select")) countSelected();
});
document.addEventListener("htmx:afterSwap", countSelected);

document.addEventListener("favourite-changed", ({ detail }) => {
  for (const star of document.querySelectorAll(`.favourite[data-picture="${detail.picture}"]`)) star.setAttribute("aria-pressed", String(detail.isFavourite));
});

// From one box to the next with Shift: all between them.
let last = null;
document.addEventListener("click", (event) => {
  const box = event.target.closest(".tile-select");
  if (box) {
    const all = boxes();
    const [from, to] = [all.indexOf(last), all.indexOf(box)].sort((a, b) => a - b);
    if (event.shiftKey && from >= 0) for (const between of all.slice(from, to)) between.checked = box.checked;
    last = box;
    countSelected();
  }
  const choice = event.target.closest("[data-select]")?.dataset.select;
  if (choice) {
    for (const each of boxes()) each.checked = choice === "all";
    countSelected();
  }
  const earlier = event.target.closest("[data-write]");
  if (earlier) writePrompt(earlier.dataset.write);
});
