// The adapters of the form. A click on a trigger word puts it before the prompt, once, and ticks its adapter.
"use strict";

document.addEventListener("click", ({ target }) => {
  const button = target.closest?.("[data-trigger]");
  if (!button) return;
  const prompt = document.getElementById("prompt");
  const word = button.dataset.trigger;
  const tick = button.closest(".adapter-choice")?.querySelector("input[type=checkbox]");
  if (tick && !tick.checked) tick.click();
  if (!prompt.value.toLowerCase().includes(word.toLowerCase())) {
    const comma = /[\u4e00-\u9fff]/.test(prompt.value || word) ? "，" : ", ";
    prompt.value = prompt.value.trim() ? `${word}${comma}${prompt.value}` : word;
    prompt.dispatchEvent(new Event("input", { bubbles: true }));
  }
  prompt.focus();
});

// An adapter that was made for few steps sets them while it is ticked, and gives back what was there when it is not. Both are
// stored with the form, so that a reload changes nothing: the value before, and the one that the adapter has set.
function followSampling(form, { isFilled = false } = {}) {
  const chosen = form.querySelector(".adapter-choice [data-steps]:checked");
  const values = kept(form);
  for (const name of ["steps", "guidance_scale"]) {
    const field = form.elements.namedItem(name);
    if (!field) return; // the model is still loading
    const key = `before:${name}`;
    const [before, set] = values[key] ?? [isFilled ? field.dataset.usual : field.value];
    const next = chosen ? chosen.dataset[name] : before;
    values[key] = chosen ? [before, next] : undefined;
    if (isFilled || field.value === next || (set !== undefined && field.value !== set)) continue; // set by hand since
    field.value = next;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  keep(form, { ...values, ...valuesOf(form) });
}

document.addEventListener("change", ({ target }) => {
  if (target.matches?.(".adapter-choice [data-steps]")) followSampling(target.form);
});
document.addEventListener("form-decided", ({ target, detail }) => {
  if (target.id === "composer") followSampling(target, { isFilled: detail === "all" });
});
// Adapters that the URL has ticked are known once the model is loaded.
document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  const form = elt.closest("#composer");
  if (form && elt.querySelector("[data-steps]")) followSampling(form);
});
