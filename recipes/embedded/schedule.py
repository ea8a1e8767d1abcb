"""The learning rate of the autoencoder's and the text encoder's training."""

import math


def rate_share(step: int, *, warm_up_steps: int, done: float) -> float:
    """Return the share of the peak learning rate: a linear warm-up, times a cosine from 1 to 0.02.

    ``step``: steps made. ``done``: share of the training's time that is over, 0 to 1.
    """
    return min(1.0, (step + 1) / warm_up_steps) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
