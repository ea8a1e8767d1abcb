// The Generate page: sizes to fields, examples to the prompt.
"use strict";

const promptField = () => document.getElementById("prompt");

// As if it was typed: Ctrl-Z brings back the text that was there.
function writePrompt(text) {
  const field = promptField();
  field.focus();
  field.select();
  document.execCommand("insertText", false, text);
}

document.addEventListener("click", (event) => {
  const size = event.target.closest(".size");
  if (size) {
    for (const side of ["width", "height"]) document.getElementById(side).value = size.dataset[side];
    document.getElementById("width").dispatchEvent(new Event("input", { bubbles: true }));
  }
  const clear = event.target.closest("[data-clear]");
  if (clear) {
    const input = document.getElementById(clear.dataset.clear);
    input.value = "";
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.focus();
  }
  const example = event.target.closest("[data-prompt]");
  if (example) {
    writePrompt(example.dataset.prompt);
    promptField().form.requestSubmit();
  }
  const remove = event.target.closest("[data-remove]");
  if (remove) remove.closest(remove.dataset.remove).remove();
});

function pressSize() {
  const [width, height] = ["width", "height"].map((side) => document.getElementById(side).value);
  for (const size of document.querySelectorAll(".size")) {
    size.setAttribute("aria-pressed", String(size.dataset.width === width && size.dataset.height === height));
  }
}
document.addEventListener("input", (event) => {
  if (event.target.id === "width" || event.target.id === "height") pressSize();
});

// Where there is little room, settings wait until they are asked for, so that pictures are near.
document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  const settings = elt.querySelector(".settings");
  if (settings && matchMedia("(max-width: 60rem)").matches && !settings.querySelector(".adapter-choice :checked")) settings.removeAttribute("open");
});

document.addEventListener("keydown", (event) => {
  if (event.target.id === "prompt" && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
});

document.addEventListener("htmx:afterSwap", (event) => {
  if (event.target.id === "gallery") {
    event.target.querySelector(".generation")?.scrollIntoView({ block: "nearest" });
  }
});

// What the service refused stands beside its field, too, while the form still has that prompt; the focus stays where it is.
document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  const failed = elt.matches(".generation-failed") ? elt : elt.querySelector(".generation-failed");
  const prompt = failed?.querySelector(".generation-prompt")?.textContent.trim();
  const field = promptField();
  if (field && prompt === field.value.trim()) markProblems(field.form, problemsIn(failed));
});
