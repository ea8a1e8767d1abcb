// Beside a prompt: its length in tokens while it is typed; adapters that are searched.
"use strict";

const COUNT_AFTER_MS = 250;
const counts = new Map(); // By field: the timer, and the number of the last question.

async function countTokens(name) {
  const field = document.getElementById(name);
  const place = document.querySelector(`[data-tokens-of="${name}"]`);
  const number = (counts.get(name)?.number ?? 0) + 1;
  counts.set(name, { number });
  if (!field || !place) return;
  try {
    const reply = await fetch("/generate/tokens", { method: "POST", body: new URLSearchParams({ prompt: field.value }) });
    if (reply.status !== 200 || counts.get(name).number !== number) return;
    const { text, is_over: isOver } = await reply.json();
    place.textContent = text;
    place.classList.toggle("is-over", isOver);
  } catch {
    // The studio is away for a moment: the next letter asks again.
  }
}

function countSoon(name) {
  const known = counts.get(name) ?? { number: 0 };
  clearTimeout(known.timer);
  counts.set(name, { ...known, timer: setTimeout(countTokens, COUNT_AFTER_MS, name) });
}

function countAll() {
  for (const place of document.querySelectorAll("[data-tokens-of]")) countSoon(place.dataset.tokensOf);
}

document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  if (elt.matches("body, #composer")) countAll();
});
document.addEventListener("service-changed", countAll);

document.addEventListener("input", ({ target }) => {
  if (document.querySelector(`[data-tokens-of="${target.id}"]`)) countSoon(target.id);
  if (!target.dataset.filters) return;
  const words = target.value.toLowerCase().split(/\s+/);
  for (const choice of target.parentElement.querySelectorAll(target.dataset.filters)) {
    const isChosen = choice.querySelector("input:checked");
    choice.hidden = !isChosen && !words.every((word) => choice.dataset.text.toLowerCase().includes(word));
  }
});

document.addEventListener("keydown", (event) => {
  if (event.target.dataset?.filters && event.key === "Enter") event.preventDefault();
});
