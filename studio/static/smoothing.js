// Smoothed values of curves, for the pages of one training and of several.
"use strict";

const SMOOTHED_STEPS = 25;

// An exponential moving average with bias correction: weights are divided by their sum.
function smoothed(values) {
  const share = 2 / (SMOOTHED_STEPS + 1);
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum += (value - sum) * share;
    weight += (1 - weight) * share;
    return sum / weight;
  });
}
