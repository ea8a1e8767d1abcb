// The Adapters page: shows the chosen file and proposes a name for it.
"use strict";

document.addEventListener("change", (event) => {
  if (event.target.id !== "file") return;
  const names = [...event.target.files].map((file) => file.name);
  document.querySelector("[data-chosen]").textContent = names.join(", ");
  const weights = names.find((name) => name.endsWith(".safetensors"));
  const name = document.getElementById("name");
  if (weights && !name.value) {
    name.value = weights.replace(/\.safetensors$/, "").toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+/, "").slice(0, 63);
  }
});

document.addEventListener("htmx:afterRequest", (event) => {
  if (event.target.id !== "import" || !event.detail.successful) return;
  event.target.reset();
  document.querySelector("[data-chosen]").textContent = "";
});
