// The viewer: arrow keys from picture to picture, zoom to pixels, a slider between two pictures, text to the clipboard.
"use strict";

const dialog = document.getElementById("viewer");
let pendingStep = 0; // More of the gallery is fetched: then it goes on.
let focused = null; // The button that a step was made with.

const current = () => dialog.querySelector("[data-viewer-of]")?.dataset.viewerOf;

function step(direction) {
  const links = [...document.querySelectorAll("a[data-view]")];
  const index = links.findIndex((link) => link.getAttribute("hx-get").split("?")[0] === current());
  const next = links[index + direction];
  if (next) return next.click();
  const more = direction > 0 && document.querySelector(".more button");
  if (!more) return undefined;
  pendingStep = direction;
  return more.click();
}

function zoom(button) {
  const area = dialog.querySelector(".viewer-scroll");
  const picture = area.querySelector("img");
  const factor = Number(button.dataset.zoom);
  area.classList.toggle("is-zoomed", factor > 0);
  picture.style.width = factor ? `${(picture.naturalWidth * factor) / devicePixelRatio}px` : "";
  for (const each of dialog.querySelectorAll("[data-zoom]")) each.setAttribute("aria-pressed", String(each === button));
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain HTTP from another machine, browsers have no clipboard for pages.
    const field = document.createElement("textarea");
    field.value = text;
    dialog.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

document.addEventListener("click", async ({ target }) => {
  const toStep = target.closest("[data-step]");
  if (toStep) {
    focused = toStep.dataset.step;
    step(Number(focused));
  }
  const toZoom = target.closest("[data-zoom]");
  if (toZoom) zoom(toZoom);
  const mode = target.closest(".slide-mode");
  if (mode) {
    const isApart = mode.closest(".slide").classList.toggle("is-apart");
    mode.textContent = isApart ? mode.dataset.apart : mode.dataset.together;
  }
  const copied = target.closest("[data-copy]");
  if (copied) {
    await copyText(copied.dataset.copy);
    const label = copied.querySelector("span");
    const before = label.textContent;
    if (before === copied.dataset.copied) return;
    label.textContent = copied.dataset.copied;
    setTimeout(() => (label.textContent = before), 1500);
    copied.focus();
  }
});

document.addEventListener("keydown", (event) => {
  const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!direction || !dialog.open || event.target.matches("input, select, textarea, .is-zoomed")) return;
  event.preventDefault();
  focused = String(direction);
  step(direction);
});

document.addEventListener("input", ({ target }) => {
  if (target.matches("[data-slide]")) target.closest(".slide").querySelector(".slide-over").style.clipPath = `inset(0 0 0 ${target.value}%)`;
});

document.addEventListener("htmx:afterSwap", ({ target }) => {
  if (target === dialog) {
    if (!dialog.open) dialog.showModal();
    if (focused) dialog.querySelector(`[data-step="${focused}"]`)?.focus();
    focused = null;
  } else if (pendingStep) {
    const direction = pendingStep;
    pendingStep = 0;
    step(direction);
  }
});
