"""The mix of requests: Chinese and English prompts, sizes, steps, and adapters of which few are popular."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.traffic.requests import prompts

SIZES_PX = ((128, 128), (64, 64), (192, 128), (128, 192), (256, 256))
"""Width and height: the embedded model's default, its smallest, two that are not square, its largest."""
_SIZE_SHARES = (0.7, 0.1, 0.08, 0.07, 0.05)
STEPS = (4, 8, 12, 16)
_PLAIN_SHARE = 0.2
"""Share of requests without an adapter, if there are adapters."""
ZIPF_EXPONENT = 1.1
"""Zipf exponent, near those measured for web caches and model hubs: the first of eight gets 40%, the last 4%."""


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """One request for one picture."""

    prompt: str
    language: str
    """zh or en."""
    adapter: str | None
    width_px: int
    height_px: int
    steps: int
    seed: int

    def body(self) -> dict[str, Any]:
        """Return the body for ``POST /generate``."""
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "width": self.width_px,
            "height": self.height_px,
            "steps": self.steps,
            "seed": self.seed,
        }
        return body if self.adapter is None else body | {"adapters": [{"name": self.adapter}]}


def zipf_shares(count: int, exponent: float = ZIPF_EXPONENT) -> list[float]:
    """Return the shares of the first, second, ... of ``count``, proportional to 1 / rank ** exponent, with sum 1."""
    weights = 1 / np.arange(1, count + 1) ** exponent
    return [float(share) for share in weights / weights.sum()]


def load_requests(adapters: Sequence[str], seed: int) -> Iterator[LoadRequest]:
    """Yield requests without end, determined by the seed. Prompts do not repeat; languages alternate."""
    random = np.random.default_rng(seed)
    names: list[str | None] = [None, *adapters]
    shares = [1.0]
    if adapters:
        shares = [_PLAIN_SHARE, *((1 - _PLAIN_SHARE) * share for share in zipf_shares(len(adapters)))]
    for number, prompt in enumerate(prompts(seed)):
        width_px, height_px = SIZES_PX[random.choice(len(SIZES_PX), p=_SIZE_SHARES)]
        yield LoadRequest(
            prompt=prompt,
            language="en" if prompt.isascii() else "zh",
            adapter=names[random.choice(len(names), p=shares)],
            width_px=width_px,
            height_px=height_px,
            steps=int(random.choice(STEPS)),
            seed=number,
        )
