"""Part 3: training."""
