// The loss of a running training: fetched every two seconds, from the last known step.
"use strict";

const POLL_MS = 2000;
const box = document.getElementById("curve");
const columns = { step: [], loss: [], learning_rate: [] };
let chart = null;

function colour(name) {
  box.style.color = `var(${name})`; // resolved, as a canvas needs it: the property itself says light-dark(…)
  const resolved = getComputedStyle(box).color;
  box.style.color = "";
  return resolved;
}

function data() {
  return [columns.step, columns.loss, smoothed(columns.loss), columns.learning_rate];
}

function draw() {
  chart?.destroy();
  const log = document.getElementById("log-scale").checked;
  const axis = { stroke: colour("--ink-soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const number = (digits) => (_, value) => (value == null ? "–" : Number(value.toPrecision(digits)).toString());
  chart = new uPlot(
    {
      width: box.clientWidth,
      height: 280,
      scales: { x: { time: false }, loss: { distr: log ? 3 : 1 }, rate: {} },
      axes: [
        { ...axis },
        { ...axis, scale: "loss", size: 62, values: log ? undefined : (_, ticks) => ticks.map((tick) => Number(tick.toPrecision(4))) },
        { ...axis, scale: "rate", side: 1, size: 66, grid: { show: false }, values: (_, ticks) => ticks.map((tick) => (tick ? tick.toExponential(1) : "0")) },
      ],
      series: [
        { label: box.dataset.step },
        { label: box.dataset.loss, scale: "loss", stroke: colour("--line-strong"), width: 1, points: { show: columns.step.length < 40 }, value: number(4) },
        { label: box.dataset.smooth, scale: "loss", stroke: colour("--seal"), width: 2, points: { show: false }, value: number(4) },
        { label: box.dataset.rate, scale: "rate", stroke: colour("--wait"), width: 1, dash: [4, 4], points: { show: false }, value: number(3) },
      ],
    },
    data(),
    box,
  );
}

function show() {
  const isEmpty = columns.step.length === 0;
  box.hidden = isEmpty;
  document.getElementById("curve-empty").hidden = !isEmpty;
  if (isEmpty) return;
  if (chart) chart.setData(data());
  else draw();
}

async function ask() {
  const after = columns.step.at(-1) ?? 0;
  try {
    const reply = await fetch(`${box.dataset.url}?after=${after}`);
    if (!reply.ok) return;
    const fresh = await reply.json();
    // A resumed run continues from its checkpoint: drop the points after it.
    const kept = columns.step.findIndex((step) => step > fresh.start_step);
    if (fresh.last_step < after && kept >= 0) for (const name of Object.keys(columns)) columns[name].length = kept;
    for (const name of Object.keys(columns)) columns[name].push(...fresh[name]);
    show();
  } catch {
    // The studio is out of reach; the next poll retries.
  }
}

async function follow() {
  await ask();
  if (box.dataset.over === "no") setTimeout(follow, POLL_MS);
}

document.getElementById("log-scale").addEventListener("change", () => chart && draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart && draw());
new ResizeObserver(() => chart?.setSize({ width: box.clientWidth, height: 280 })).observe(box);

// A log stays at its end, unless someone has scrolled up to read.
const LOGS = ["log-words", "log-text"];
const places = new Map();

function noteLogs() {
  for (const log of LOGS.map((id) => document.getElementById(id))) {
    places.set(log.id, log.scrollHeight - log.scrollTop - log.clientHeight < 40 ? Infinity : log.scrollTop);
  }
}

function scrollLogs() {
  for (const log of LOGS.map((id) => document.getElementById(id))) log.scrollTop = Math.min(places.get(log.id) ?? Infinity, log.scrollHeight);
}

document.addEventListener("htmx:beforeSwap", noteLogs);
document.addEventListener("htmx:afterSettle", scrollLogs);
document.querySelector("#job-log details").addEventListener("toggle", scrollLogs);

scrollLogs();
follow();
