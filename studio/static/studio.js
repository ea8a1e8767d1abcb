// What pages need beyond htmx: messages that can be closed, problems beside their fields, files dropped, times in the reader's zone.
"use strict";

const TOAST_MS = 12000;

// The studio does not answer: the top of the page says so until it does.
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

// A form is sent again: what was wrong with it before is forgotten.
document.addEventListener("htmx:beforeRequest", (event) => {
  const form = event.target.closest("form");
  if (!form || event.detail.requestConfig.verb === "get") return;
  for (const message of document.querySelectorAll("#toasts .toast-trouble")) message.remove();
  for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  for (const place of form.querySelectorAll(".problem")) place.hidden = true;
});

// Show each problem beside its field, too; the first such field gets the focus.
document.addEventListener("htmx:afterSwap", (event) => {
  const toasts = document.getElementById("toasts");
  if (event.target === toasts) {
    for (const earlier of [...toasts.querySelectorAll(".toast-trouble")].slice(0, -1)) earlier.remove();
  }
  const form = event.detail.requestConfig?.elt?.closest?.("form");
  if (event.target !== toasts || !form) return;
  placeProblems(form, problemsIn(toasts.lastElementChild));
});

function problemsIn(message) {
  const items = [...(message?.querySelectorAll("[data-problem]") ?? [])];
  return items.map((item) => [item.dataset.problem, item.querySelector("span").textContent]);
}

// A form that came with problems: of a request that was refused.
document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  const form = elt.matches("form[data-problems]") ? elt : elt.querySelector("form[data-problems]");
  if (form) placeProblems(form, Object.entries(JSON.parse(form.getAttribute("data-problems"))));
});

function placeProblems(form, problems) {
  const first = markProblems(form, problems);
  if (!first) return;
  for (let fold = first.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  first.focus();
}

// Returns the first field that has a problem.
function markProblems(form, problems) {
  let first = null;
  for (const [name, text] of problems) {
    const control = form.elements.namedItem(name);
    const place = form.querySelector(`#problem-${CSS.escape(name)}`);
    if (place) {
      place.setAttribute("aria-live", "polite");
      place.textContent = text;
      place.hidden = false;
    }
    if (control instanceof HTMLElement) {
      control.setAttribute("aria-invalid", "true");
      if (place) control.setAttribute("aria-errormessage", place.id);
      first ??= control;
    }
  }
  return first;
}

// A field that is mended is no problem any more, beside it or in the message.
document.addEventListener("input", ({ target }) => {
  if (!target.matches("[aria-invalid]")) return;
  target.removeAttribute("aria-invalid");
  const place = document.getElementById(`problem-${target.name}`);
  if (place) place.hidden = true;
  for (const item of document.querySelectorAll(`#toasts [data-problem="${CSS.escape(target.name)}"]`)) {
    const message = item.closest(".toast");
    item.remove();
    if (!message.querySelector("[data-problem], .detail")) message.remove();
  }
});

// When the focused item is removed from a list, the next item of the list gets the focus.
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

// A slider and the number beside it follow each other.
document.addEventListener("input", ({ target }) => {
  if (target.dataset.slides) {
    const number = document.getElementById(target.dataset.slides);
    number.value = target.value;
    number.dispatchEvent(new Event("input", { bubbles: true }));
  } else {
    const slider = document.getElementById(`${target.id}-slider`);
    if (slider && slider !== document.activeElement) slider.value = target.value;
  }
});

// .drop holds an <input type=file>; what is dropped on it is as if chosen.
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
  const times = root.matches("time[datetime]") ? [root] : root.querySelectorAll("time[datetime]:not([data-local])");
  for (const time of times) {
    time.dataset.local = "";
    const when = new Date(time.dateTime);
    time.title = time.textContent;
    time.textContent = when.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
  }
}
localTimes(document.body);
// Before the next paint: a list that is fetched again every few seconds must not flicker.
new MutationObserver((changes) => {
  for (const node of changes.flatMap((change) => [...change.addedNodes])) if (node instanceof Element) localTimes(node);
}).observe(document.body, { childList: true, subtree: true });

// Messages that are no errors leave by themselves.
new MutationObserver((changes) => {
  for (const node of changes.flatMap((change) => [...change.addedNodes])) {
    if (node instanceof HTMLElement && !node.classList.contains("toast-trouble")) setTimeout(() => node.remove(), TOAST_MS);
  }
}).observe(document.getElementById("toasts"), { childList: true });
