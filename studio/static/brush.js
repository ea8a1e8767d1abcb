// The mask of the editor: strokes over the picture, which can be undone. The canvas has a pixel for each pixel of the picture,
// whatever the screen; it is opaque where the picture may change.
"use strict";

const mask = document.getElementById("mask");
const ink = mask.getContext("2d", { willReadFrequently: true });
const ring = document.querySelector(".brush-ring");
const sizeField = document.getElementById("brush-size");
const COLOUR = "#4466ff";
const SIZE_STEP = 1.2;
const maskKey = `mask:${mask.dataset.source}`;

let opened = null; // The mask with which the page was opened: strokes come on top of it.
let strokes = []; // Since then, the oldest first; also what is no stroke, clear and invert.
let undone = [];
let line = null; // The stroke under way.
let at = [mask.width / 2, mask.height / 2]; // The brush, in pixels of the picture.

const brushSize = () => Number(sizeField.value) || 1;
const erases = () => document.querySelector("[data-tool=erase]").getAttribute("aria-pressed") === "true";

function drawStroke({ erases: isErased, size, points }) {
  ink.globalCompositeOperation = isErased ? "destination-out" : "source-over";
  // The eraser takes the soft edge of a stroke of its size, too: nothing faint is left that would count as a mask.
  Object.assign(ink, { strokeStyle: COLOUR, lineWidth: size + (isErased ? 2 : 0), lineCap: "round", lineJoin: "round" });
  ink.beginPath();
  ink.moveTo(points[0][0], points[0][1] + 0.01); // a line without length draws no dot
  for (const point of points) ink.lineTo(...point);
  ink.stroke();
}

function applyStroke(stroke) {
  if (stroke.points) return drawStroke(stroke);
  if (stroke.kind === "clear") return ink.clearRect(0, 0, mask.width, mask.height);
  Object.assign(ink, { globalCompositeOperation: "source-out", fillStyle: COLOUR });
  return ink.fillRect(0, 0, mask.width, mask.height);
}

function redraw() {
  ink.clearRect(0, 0, mask.width, mask.height);
  ink.globalCompositeOperation = "source-over";
  if (opened) ink.drawImage(opened, 0, 0);
  strokes.forEach(applyStroke);
}

function isMasked() {
  const { data } = ink.getImageData(0, 0, mask.width, mask.height);
  for (let i = 3; i < data.length; i += 4) if (data[i]) return true;
  return false;
}

// Storage may be disabled or full.
function stored(storage, key) {
  try {
    return window[storage].getItem(key);
  } catch {
    return null;
  }
}
function store(storage, key, value) {
  try {
    window[storage].setItem(key, value);
  } catch {
    // The page works without.
  }
}

// isOpened: nothing was changed by the person.
function tellChange(isOpened = false) {
  const isUsed = isMasked();
  store("sessionStorage", maskKey, isUsed ? mask.toDataURL() : "");
  document.querySelector("[data-act=undo]").disabled = !strokes.length;
  document.querySelector("[data-act=redo]").disabled = !undone.length;
  document.dispatchEvent(new CustomEvent("mask-changed", { detail: { isUsed, isOpened } }));
}

function addStroke(stroke) {
  strokes.push(stroke);
  undone = [];
  redraw(); // while it is drawn, a stroke is many pieces: as one, undo and redo give exactly the same
  tellChange();
}

function changeMask(name) {
  if (name === "undo" && strokes.length) undone.push(strokes.pop());
  else if (name === "redo" && undone.length) strokes.push(undone.pop());
  else if (name === "clear" || name === "invert") return addStroke({ kind: name });
  else return undefined;
  redraw();
  return tellChange();
}

function placeBrush(event) {
  const box = mask.getBoundingClientRect();
  at = [((event.clientX - box.left) * mask.width) / box.width, ((event.clientY - box.top) * mask.height) / box.height];
}

function showRing() {
  const scale = mask.clientWidth / mask.width;
  const side = brushSize() * scale;
  Object.assign(ring.style, { width: `${side}px`, height: `${side}px`, left: `${at[0] * scale - side / 2}px`, top: `${at[1] * scale - side / 2}px` });
}

function beginLine() {
  line = { erases: erases(), size: brushSize(), points: [at] };
  drawStroke(line);
}

function extendLine() {
  const before = line.points.at(-1);
  line.points.push(at);
  drawStroke({ ...line, points: [before, at] });
}

function endLine() {
  if (line) addStroke(line);
  line = null;
}

mask.addEventListener("pointerdown", (event) => {
  if (event.button || !event.isPrimary) return;
  mask.setPointerCapture(event.pointerId);
  placeBrush(event);
  showRing();
  beginLine();
});
mask.addEventListener("pointermove", (event) => {
  for (const each of line ? event.getCoalescedEvents() : []) {
    placeBrush(each);
    extendLine();
  }
  placeBrush(event);
  if (line) extendLine();
  showRing();
});
for (const name of ["pointerup", "pointercancel"]) mask.addEventListener(name, endLine);

function resizeBrush(factor) {
  const next = Math.round(brushSize() * factor);
  const size = next === brushSize() ? next + Math.sign(factor - 1) : next;
  sizeField.value = Math.min(Math.max(size, 1), Number(sizeField.max));
  sizeField.dispatchEvent(new Event("input", { bubbles: true }));
}

function chooseTool(name) {
  for (const each of document.querySelectorAll("[data-tool]")) each.setAttribute("aria-pressed", String(each.dataset.tool === name));
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// The brush without a pointer: arrows move it, with Shift they paint, and the space bar makes a dot.
function useKeys(event) {
  const move = MOVES[event.key];
  if (!move && event.key !== " ") return;
  event.preventDefault();
  const isPainted = !move || event.shiftKey;
  if (isPainted) beginLine();
  if (move) {
    const pace = Math.max(1, brushSize() / 4);
    at = [Math.min(Math.max(at[0] + move[0] * pace, 0), mask.width), Math.min(Math.max(at[1] + move[1] * pace, 0), mask.height)];
    if (isPainted) extendLine();
  }
  endLine();
  showRing();
}
mask.addEventListener("keydown", useKeys);
mask.addEventListener("focus", showRing);

document.querySelector(".easel").addEventListener("keydown", (event) => {
  const isCommand = event.ctrlKey || event.metaKey;
  const pressed = event.key.toLowerCase();
  if (event.target === sizeField) return;
  if (isCommand && (pressed === "z" || pressed === "y")) changeMask(pressed === "y" || event.shiftKey ? "redo" : "undo");
  else if (isCommand || event.altKey) return;
  else if (pressed === "[" || pressed === "]") resizeBrush(pressed === "]" ? SIZE_STEP : 1 / SIZE_STEP);
  else if (pressed === "b" || pressed === "e") chooseTool(pressed === "b" ? "paint" : "erase");
  else return;
  event.preventDefault();
});
document.addEventListener("click", ({ target }) => {
  const button = target.closest("[data-tool], [data-act]");
  if (button?.dataset.tool) chooseTool(button.dataset.tool);
  else if (button) changeMask(button.dataset.act);
});
sizeField.addEventListener("input", () => {
  showRing();
  store("localStorage", "brush-size", sizeField.value / sizeField.max);
});

// White on black, as the service takes it.
function maskFile() {
  const copy = Object.assign(document.createElement("canvas"), { width: mask.width, height: mask.height });
  const paper = copy.getContext("2d");
  paper.drawImage(mask, 0, 0);
  for (const [operation, colour] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
    Object.assign(paper, { globalCompositeOperation: operation, fillStyle: colour });
    paper.fillRect(0, 0, copy.width, copy.height);
  }
  const bytes = Uint8Array.from(atob(copy.toDataURL("image/png").split(",")[1]), (letter) => letter.charCodeAt(0));
  return new File([bytes], "mask.png", { type: "image/png" });
}

async function openMask() {
  const isOfRecipe = mask.dataset.mask !== undefined;
  const address = isOfRecipe ? mask.dataset.mask : stored("sessionStorage", maskKey);
  if (address) {
    const picture = Object.assign(new Image(), { src: address });
    await picture.decode();
    ink.drawImage(picture, 0, 0, mask.width, mask.height);
    if (isOfRecipe) {
      // White on black becomes opaque on transparent.
      const pixels = ink.getImageData(0, 0, mask.width, mask.height);
      for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([0x44, 0x66, 0xff, pixels.data[i]], i);
      ink.putImageData(pixels, 0, 0);
    }
    opened = await createImageBitmap(mask);
  }
  tellChange(true);
}

const lastSize = Number(stored("localStorage", "brush-size")); // a part of the largest
if (lastSize) sizeField.value = Math.max(1, Math.round(lastSize * sizeField.max));
sizeField.dispatchEvent(new Event("input", { bubbles: true }));
openMask();
