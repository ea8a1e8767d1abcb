// A click on a trigger word puts it before the prompt, once, and ticks its adapter.
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
