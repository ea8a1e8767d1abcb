"""Evaluation in a training: the loss on held-out pictures, its schedule, the best adapter."""
