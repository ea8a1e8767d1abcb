// Jobs that are ticked stay so when the list is shown again, every few seconds.
"use strict";

const ticked = new Set();

document.addEventListener("change", ({ target }) => {
  if (target.name !== "job") return;
  if (target.checked) ticked.add(target.value);
  else ticked.delete(target.value);
});

document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  for (const box of elt.querySelectorAll("input[name=job]")) box.checked = ticked.has(box.value);
});
