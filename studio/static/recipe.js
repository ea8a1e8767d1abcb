// A PNG that is chosen, dropped or pasted anywhere on the Generate page fills the form with its recipe; so does a picture of the gallery.
"use strict";

const cover = document.querySelector(".drop-over");

function readRecipe(files) {
  const input = document.getElementById("recipe-file");
  if (files !== input.files) input.files = files;
  input.form.requestSubmit();
}

// A picture dragged out of the gallery is a link and a file at once.
function isOfGallery(transfer) {
  return /\/gallery\/([\w-]+)$/.exec(transfer.getData("text/uri-list"))?.[1];
}

document.addEventListener("change", ({ target }) => {
  if (target.id === "recipe-file" && target.files.length) readRecipe(target.files);
});

document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  cover.hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) cover.hidden = true;
});
document.addEventListener("dragend", () => (cover.hidden = true));
document.addEventListener("drop", (event) => {
  cover.hidden = true;
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const picture = isOfGallery(event.dataTransfer);
  if (picture) htmx.ajax("GET", `/generate/composer?like=${picture}`, { target: "#composer", swap: "outerHTML" });
  else if (event.dataTransfer.files.length) readRecipe(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  const isText = types.includes("text/plain") && event.target.matches("input, textarea"); // some programs add a picture of it
  if (!files.length || isText) return;
  event.preventDefault();
  readRecipe(files);
});

// The same file can be chosen again.
document.addEventListener("htmx:afterRequest", ({ target }) => {
  if (target.id === "recipe-form") target.reset();
});
