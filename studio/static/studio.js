// Behaviour of all pages beyond htmx: closable messages, problems beside fields, dropped files, times in the local zone.
"use strict";

const TOAST_MS = 12000;

// While the studio does not answer, the top of the page shows it.
function setOffline(isOffline) {
  for (const pill of document.querySelectorAll(".service-slot .pill")) pill.hidden = isOffline !== pill.matches(".pill-offline");
}
document.addEventListener("htmx:sendError", () => setOffline(true));
document.addEventListener("htmx:beforeOnLoad", () => setOffline(false));

document.addEventListener("click", (event) => {
  event.target.closest("[data-dismiss-toast]")?.closest(".toast").remove();
  const opener = event.target.closest("[data-open-dialog]");
  if (opener) document.getElementById(opener.dataset.openDialog).showModal();
  if (event.target.closest("[data-close-dialog]") || event.target instanceof HTMLDialogElement) {
    event.target.closest("dialog")?.close();
  }
});

// Submitting a form again clears its earlier problems.
document.addEventListener("htmx:beforeRequest", (event) => {
  const form = event.target.closest("form");
  if (!form || event.detail.requestConfig.verb === "get") return;
  for (const message of document.querySelectorAll("#toasts .toast-trouble")) message.remove();
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  for (const slot of form.querySelectorAll(".problem")) slot.hidden = true;
});

// Problems from the reply also appear beside their fields, and the first such field gets the focus.
document.addEventListener("htmx:afterSwap", (event) => {
  const toasts = document.getElementById("toasts");
  if (event.target === toasts) {
    for (const earlier of [...toasts.querySelectorAll(".toast-trouble")].slice(0, -1)) earlier.remove();
  }
  const form = event.detail.requestConfig?.elt?.closest?.("form");
  if (event.target !== toasts || !form) return;
  let first = null;
  for (const item of toasts.lastElementChild?.querySelectorAll("[data-problem]") ?? []) {
    const name = item.dataset.problem;
    const control = form.elements[name];
    const slot = form.querySelector(`#problem-${CSS.escape(name)}`);
    if (slot) {
      slot.textContent = item.querySelector("span").textContent;
      slot.hidden = false;
    }
    if (control instanceof HTMLElement) {
      control.setAttribute("aria-invalid", "true");
      if (slot) control.setAttribute("aria-errormessage", slot.id);
      first ??= control;
    }
  }
  if (first) {
    for (let fold = first.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    first.focus();
  }
});

// Editing a field clears its problem, beside it and in the message.
document.addEventListener("input", ({ target }) => {
  if (!target.matches("[aria-invalid]")) return;
  target.removeAttribute("aria-invalid");
  const slot = document.getElementById(`problem-${target.name}`);
  if (slot) slot.hidden = true;
  for (const item of document.querySelectorAll(`#toasts [data-problem="${CSS.escape(target.name)}"]`)) {
    const message = item.closest(".toast");
    item.remove();
    if (!message.querySelector("[data-problem], .detail")) message.remove();
  }
});

// If the focused element is removed from the page, its neighbour of the same kind gets the focus.
document.addEventListener("htmx:beforeSwap", (event) => {
  const gone = event.detail.target;
  if (!gone.contains(document.activeElement) || gone.parentElement?.tagName !== "OL") return;
  const index = [...gone.parentElement.children].indexOf(gone);
  const list = gone.parentElement;
  setTimeout(() => {
    if (gone.isConnected || document.activeElement !== document.body) return;
    const near = list.children[Math.min(index, list.children.length - 1)]?.querySelector("a, button");
    (near ?? document.getElementById("main")).focus();
  }, 50);
});

// <output data-of="…"> shows its slider's value.
document.addEventListener("input", (event) => {
  for (const output of document.querySelectorAll(`output[data-of="${event.target.id}"]`)) output.textContent = event.target.value;
});

// .drop holds an <input type=file>; files dropped on it count as chosen.
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    const zone = event.target.closest?.(".drop");
    if (!zone) return;
    event.preventDefault();
    zone.classList.toggle("is-over", name === "dragover");
    if (name === "drop") {
      const input = zone.querySelector("input[type=file]");
      input.files = event.dataTransfer.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    }
  });
}

function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    time.dataset.local = "";
    const when = new Date(time.dateTime);
    time.title = time.textContent;
    time.textContent = when.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
  }
}
document.addEventListener("DOMContentLoaded", () => localTimes(document));
document.addEventListener("htmx:load", (event) => localTimes(event.detail.elt));

// Messages other than errors disappear by themselves.
new MutationObserver((changes) => {
  for (const node of changes.flatMap((change) => [...change.addedNodes])) {
    if (node instanceof HTMLElement && !node.classList.contains("toast-trouble")) setTimeout(() => node.remove(), TOAST_MS);
  }
}).observe(document.getElementById("toasts"), { childList: true });
