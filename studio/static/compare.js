// Smoothed losses of several trainings, over each other, by step.
"use strict";

const POLL_MS = 4000;
const box = document.getElementById("curves");
let chart = null;

function colour(index) {
  const line = document.querySelector(`.key-line.curve-${index + 1}`);
  return getComputedStyle(line).borderTopColor;
}

function draw(runs, tables) {
  const axis = { stroke: getComputedStyle(box).color, grid: { stroke: getComputedStyle(box).borderColor, width: 1 } };
  const label = (_, value) => (value == null ? "–" : value.toPrecision(4));
  chart?.destroy();
  chart = new uPlot(
    {
      width: box.clientWidth,
      height: 340,
      scales: { x: { time: false } },
      axes: [axis, { ...axis, size: 62 }],
      series: [
        { label: box.dataset.step },
        ...runs.map((run, i) => ({ label: run.dataset.name, stroke: colour(i), width: 2, spanGaps: true, points: { show: false }, value: label })),
      ],
    },
    uPlot.join(tables),
    box,
  );
}

async function ask() {
  const runs = [...box.querySelectorAll("[data-url]")];
  const replies = await Promise.all(runs.map((run) => fetch(run.dataset.url).then((reply) => reply.json())));
  const tables = replies.map((reply) => [reply.step, smoothed(reply.loss)]);
  const isEmpty = tables.every(([steps]) => steps.length === 0);
  document.getElementById("curves-empty").hidden = !isEmpty;
  if (!isEmpty) draw(runs, tables);
  if (runs.some((run) => run.dataset.over === "no")) setTimeout(ask, POLL_MS);
}

if (box) {
  ask();
  new ResizeObserver(() => chart?.setSize({ width: box.clientWidth, height: 340 })).observe(box);
}
