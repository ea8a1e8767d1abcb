// The editor: how much changes, in words; what is added around the picture; the mask with the request; the newest result.
"use strict";

const frame = document.querySelector(".easel-frame");
const box = document.querySelector(".easel-box");
const SIDES = ["left", "top", "right", "bottom"];
let hasMask = false;
let usual = null; // The strength that a request without one has.

const field = (name) => document.getElementById("composer").elements.namedItem(name);
const margins = () => SIDES.map((side) => Math.max(0, Number(field(side)?.value) || 0));

// The picture and what is added around it, to scale.
function layOut() {
  const [left, top, right, bottom] = margins();
  const [width, height] = [Number(frame.dataset.width), Number(frame.dataset.height)];
  const [across, down] = [width + left + right, height + top + bottom];
  frame.style.setProperty("--ratio", across / down);
  const percent = (part, whole) => `${(100 * part) / whole}%`;
  Object.assign(box.style, { left: percent(left, across), top: percent(top, down), width: percent(width, across), height: percent(height, down) });
  const place = document.getElementById("result-size");
  place.textContent = place.dataset.text.replace("{width}", across).replace("{height}", down);
  showRing();
}

// What changes, in words, and the strength that goes with it, unless the person has chosen another.
function followScope(isOpened) {
  const hasMargins = margins().some(Boolean);
  const scope = hasMask ? (hasMargins ? "both" : "masked") : hasMargins ? "added" : "whole";
  for (const words of document.querySelectorAll("[data-scope]")) words.hidden = words.dataset.scope !== scope;
  const strength = field("strength");
  if (!strength) return;
  const { masked, whole } = document.getElementById("strength-words").dataset;
  const next = scope === "whole" ? whole : masked;
  const isUsual = usual !== null && Number(strength.value) === Number(usual);
  if (!isOpened && isUsual && next !== usual) {
    strength.value = next;
    strength.dispatchEvent(new Event("input", { bubbles: true }));
  }
  usual = next;
  sayStrength();
}

function sayStrength() {
  const strength = field("strength");
  if (!strength) return;
  const level = Number(strength.value) < 0.45 ? "little" : Number(strength.value) < 0.8 ? "some" : "much";
  for (const words of document.querySelectorAll("[data-strength]")) words.hidden = words.dataset.strength !== level;
}

document.addEventListener("mask-changed", ({ detail }) => {
  hasMask = detail.isUsed;
  followScope(detail.isOpened);
});
document.addEventListener("input", ({ target }) => {
  if (target.name === "strength") sayStrength();
  if (SIDES.includes(target.name)) {
    layOut();
    followScope(false);
  }
});
document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  if (elt.matches("body") || elt.querySelector("[name=left]") || elt.id === "composer") {
    layOut();
    followScope(true);
  }
  if (elt.matches(".tile")) htmx.trigger(document.body, "result-drawn");
});

// What is asked, and the size of the result, depend on the model: once it is known, the page comes anew, with the words.
document.addEventListener("service-changed", () => {
  const form = document.getElementById("composer");
  if (!form.hasAttribute("data-unknown")) return;
  const entered = ["prompt", "negative_prompt", ...SIDES].map((name) => [name, field(name).value]);
  for (const kind of ["edit-prompt", "edit-instruction"]) {
    form.setAttribute("data-keep", kind);
    keep(form, { ...kept(form), ...Object.fromEntries(entered) });
  }
  location.reload();
});

document.addEventListener("htmx:configRequest", ({ detail }) => {
  if (detail.elt.id === "composer" && hasMask) detail.formData.set("mask", maskFile());
});
new ResizeObserver(() => showRing()).observe(box);
