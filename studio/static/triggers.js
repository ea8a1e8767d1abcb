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

// An adapter that was made for few steps sets them when it is ticked, and gives back what was there when it is not.
document.addEventListener("change", ({ target }) => {
  if (!target.matches?.(".adapter-choice [data-steps]")) return;
  for (const name of ["steps", "guidance_scale"]) {
    const field = document.getElementById(name);
    if (!field) continue; // the model is still loading
    const before = `${name}Before`;
    if (target.checked) target.dataset[before] = field.value;
    else if (field.value !== target.dataset[name]) continue; // set by hand since
    field.value = target.checked ? target.dataset[name] : (target.dataset[before] ?? field.defaultValue);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
});
