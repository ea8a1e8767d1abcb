// The Generate page: sizes to fields, examples to the prompt, pictures into the viewer.
"use strict";

const prompt = document.getElementById("prompt");

document.addEventListener("click", (event) => {
  const size = event.target.closest(".size");
  if (size) {
    for (const side of ["width", "height"]) document.getElementById(side).value = size.dataset[side];
    pressSize();
  }
  const clear = event.target.closest("[data-clear]");
  if (clear) {
    const input = document.getElementById(clear.dataset.clear);
    input.value = "";
    input.focus();
  }
  const example = event.target.closest("[data-prompt]");
  if (example) {
    prompt.value = example.dataset.prompt;
    prompt.form.requestSubmit();
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
if (matchMedia("(max-width: 60rem)").matches && !document.querySelector(".adapter-choice :checked")) {
  document.querySelector(".settings")?.removeAttribute("open");
}

prompt?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    prompt.form.requestSubmit();
  }
});

document.addEventListener("htmx:afterSwap", (event) => {
  const viewer = document.getElementById("viewer");
  if (event.target === viewer && !viewer.open) viewer.showModal();
  if (event.target.id === "gallery") {
    event.target.querySelector(".drawing")?.scrollIntoView({ block: "nearest" });
  }
});
