// Chosen files and upload progress, import on choosing a file, and the dataset's summary after a caption is saved.
"use strict";

function readable(bytes) {
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
}

document.addEventListener("change", (event) => {
  const input = event.target;
  if (input.matches("[data-submit-on-change]") && input.files.length) input.form.requestSubmit();
  const chosen = input.closest(".drop")?.querySelector(".chosen");
  if (!chosen) return;
  const size = readable([...input.files].reduce((sum, file) => sum + file.size, 0));
  const words = input.files.length === 1 ? chosen.dataset.one : chosen.dataset.many;
  chosen.textContent = input.files.length ? words.replace("{n}", input.files.length).replace("{size}", size) : "";
  const name = input.form.elements.namedItem("name");
  if (name && !name.value && input.files.length === 1) name.value = input.files[0].name.replace(/\.zip$/i, "");
});

document.addEventListener("htmx:xhr:progress", (event) => {
  const bar = event.target.querySelector?.(".upload-progress");
  if (!bar || !event.detail.lengthComputable) return;
  bar.hidden = false;
  bar.value = event.detail.loaded / event.detail.total;
});

document.addEventListener("htmx:afterRequest", (event) => {
  const bar = event.target.querySelector?.(".upload-progress");
  if (bar) bar.hidden = true;
});

// A saved caption changes the dataset's summary and its dropped pictures; both are refreshed when no caption has the focus.
let isOutdated = false;

function refreshFigures() {
  if (!isOutdated || document.activeElement.closest("#left-out")) return;
  isOutdated = false;
  htmx.trigger("#summary", "refresh");
}

document.addEventListener("caption-saved", () => {
  isOutdated = true;
  refreshFigures();
});
document.addEventListener("focusout", () => setTimeout(refreshFigures));
