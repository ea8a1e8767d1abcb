"""Part 1: correctness, and the speed of serving."""
