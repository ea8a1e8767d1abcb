// The Train page's three choices: a dataset, a goal and a model fill in options; folded options with a problem are unfolded.
"use strict";

function optionOf(name) {
  return document.getElementById(`option-${name}`);
}

function fill(values) {
  for (const [name, value] of Object.entries(values)) {
    const control = optionOf(name);
    if (control.type === "checkbox") control.checked = value === "true";
    else control.value = value;
    control.dispatchEvent(new Event("input", { bubbles: true }));
  }
  document.getElementById("train").dispatchEvent(new Event("change", { bubbles: true }));
}

function showModel() {
  const model = optionOf("model_flavour").value;
  for (const button of document.querySelectorAll("#models [data-model]")) button.setAttribute("aria-pressed", button.dataset.model === model);
  for (const list of document.querySelectorAll(".sets")) list.hidden = list.dataset.model !== model;
}

function goalValues(model) {
  const goal = document.querySelector("#goals input:checked")?.value ?? "style";
  return JSON.parse(document.getElementById("goals").dataset.values)[model]?.[goal] ?? {};
}

document.addEventListener("click", ({ target }) => {
  const model = target.closest?.("#models [data-model]")?.dataset.model;
  if (!model) return;
  fill({ ...JSON.parse(document.getElementById("models").dataset.values)[model], ...goalValues(model) });
  showModel();
});

document.addEventListener("change", ({ target }) => {
  if (target.name === "goal") fill(goalValues(optionOf("model_flavour").value));
  if (target.id === "option-model_flavour") showModel();
  if (target.name !== "dataset") return;
  const name = optionOf("adapter_name");
  const suggested = [...document.querySelectorAll("[name=dataset]")].map((pick) => pick.dataset.adapterName);
  fill({ instance_data_dir: target.value, ...(name.value && !suggested.includes(name.value) ? {} : { adapter_name: target.dataset.adapterName }) });
});

// A typed or restored folder selects its dataset too.
document.addEventListener("input", ({ target }) => {
  if (target.id === "option-instance_data_dir") {
    for (const pick of document.querySelectorAll("[name=dataset]")) pick.checked = pick.value === target.value;
  }
  if (target.id === "option-model_flavour") showModel();
});

// After each check, folded options with a problem are unfolded.
document.addEventListener("htmx:afterSettle", () => {
  for (const problem of document.querySelectorAll("#all-options .problem:not([hidden])")) {
    for (let fold = problem.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  }
});
