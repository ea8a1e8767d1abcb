// "Edit this": the picture at an address of the studio is opened in the editor.
"use strict";

document.addEventListener("click", async ({ target }) => {
  const button = target.closest?.("[data-edit]");
  if (!button) return;
  const address = button.dataset.edit;
  const reply = await fetch(address);
  // A picture that is gone: the studio's own message says so.
  if (!reply.ok) return htmx.ajax("GET", address, { source: button, swap: "none" });
  const picture = new File([await reply.blob()], "picture.png");
  return htmx.ajax("POST", "/edit", { source: button, values: { picture }, swap: "none" });
});

// Pages with a form of their own for it take a picture that is dropped anywhere or pasted.
function openInEditor(files) {
  const input = document.getElementById("edit-file");
  if (!input || !files.length) return false;
  input.files = files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
  return true;
}
document.addEventListener("dragover", (event) => {
  if (document.getElementById("edit-file") && event.dataTransfer.types.includes("Files")) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  if (!event.defaultPrevented && openInEditor(event.dataTransfer.files)) event.preventDefault();
});
document.addEventListener("paste", (event) => {
  const isText = event.clipboardData.types.includes("text/plain") && event.target.matches("input, textarea"); // some programs add a picture of it
  if (!isText && openInEditor(event.clipboardData.files)) event.preventDefault();
});

// The same file can be chosen again.
document.addEventListener("htmx:afterRequest", ({ target }) => {
  if (target.id === "edit-open") target.reset();
});
