// The browser stores a form with data-keep across reloads, pages, languages and themes. data-decided names the part that the
// URL or a file has set, which stored values must not replace: "all" of the form, its "adapters" or its "prompt". A form with
// data-draft, too, is stored for this tab alone and until it is sent.
"use strict";

const DECIDED = { all: /^/, adapters: /^(adapter=|scale:)/, prompt: /^prompt$/ };
const STORED = "input:not([type=hidden], [type=file]), select, textarea";

// A form's own properties (form.dataset) can be shadowed by controls of that name; its attributes cannot.
function storageKey(form) {
  return `form:${form.getAttribute("data-keep")}`;
}

function storeOf(form) {
  return form.hasAttribute("data-draft") ? sessionStorage : localStorage;
}

function kept(form) {
  try {
    return JSON.parse(storeOf(form).getItem(storageKey(form))) ?? {};
  } catch {
    return {}; // storage may be disabled
  }
}

function keep(form, values) {
  try {
    storeOf(form).setItem(storageKey(form), JSON.stringify(values));
  } catch {
    // storage may be disabled
  }
}

function isTicked(control) {
  return control.type === "checkbox" || control.type === "radio";
}

function keyOf(control) {
  return isTicked(control) ? `${control.name}=${control.value}` : control.name;
}

function valuesOf(form) {
  const controls = [...form.querySelectorAll(STORED)].filter((control) => control.name);
  return Object.fromEntries(controls.map((control) => [keyOf(control), isTicked(control) ? control.checked : control.value]));
}

function restore(form, part) {
  const values = kept(form);
  let isChanged = false;
  for (const control of part.querySelectorAll(STORED)) {
    const value = values[keyOf(control)];
    const property = isTicked(control) ? "checked" : "value";
    if (value === undefined) continue;
    if (control instanceof HTMLSelectElement && ![...control.options].some((option) => option.value === value)) control.add(new Option(value));
    isChanged ||= control[property] !== value;
    control[property] = value;
    control.dispatchEvent(new Event("input", { bubbles: true })); // also for a value that the browser has restored
  }
  if (isChanged) form.dispatchEvent(new Event("change", { bubbles: true }));
  if (isChanged && form.parentElement.matches("details")) form.parentElement.open = true;
  if (form.hasAttribute("data-draft")) return; // nothing is entered yet: the page's values are the server's
  keep(form, { ...values, ...valuesOf(form) }); // keep values of fields that are not on the page yet
}

function begin(form) {
  const decided = form.getAttribute("data-decided");
  if (decided) {
    const isOpen = (key) => !DECIDED[decided].test(key);
    keep(form, Object.fromEntries(Object.entries(kept(form)).filter(([key]) => isOpen(key))));
    form.removeAttribute("data-decided");
    history.replaceState(null, "", form.getAttribute("data-home")); // a reload shows the form with its stored values
  }
  restore(form, form);
  if (decided) form.dispatchEvent(new CustomEvent("form-decided", { bubbles: true, detail: decided }));
}

document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  const outer = elt.parentElement?.closest("form[data-keep]");
  if (outer) restore(outer, elt);
  else for (const form of elt.matches("form[data-keep]") ? [elt] : elt.querySelectorAll("form[data-keep]")) begin(form);
});

for (const name of ["input", "change"]) {
  document.addEventListener(name, ({ target }) => {
    const form = target.closest?.("form[data-keep]");
    if (form && !form.hasAttribute("data-decided")) keep(form, { ...kept(form), ...valuesOf(form) });
  });
}

document.addEventListener("htmx:afterRequest", ({ target, detail }) => {
  const form = target.closest?.("form[data-draft]");
  if (form && detail.xhr.status >= 200 && detail.xhr.status < 400) keep(form, {}); // a redirect does not count as successful
});

document.addEventListener("submit", ({ target }) => {
  if (target.getAttribute("action") !== "/logout") return;
  localStorage.clear();
  sessionStorage.clear();
});
