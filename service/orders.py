"""What the engine is asked for, and what it says about it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from service.slots import Adapter
from service.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """An adapter as an order names it (``ink`` or ``ink@3``), and how strongly."""

    reference: str
    scale: float


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to draw: everything is decided, nothing is left to a default."""

    id: str
    prompt: str
    negative_prompt: str
    width_px: int
    height_px: int
    steps: int
    guidance_scale: float
    cfg_renorm: bool
    rewrite_prompt: bool
    seeds: tuple[int, ...]
    """One picture each."""
    adapters: tuple[AdapterUse, ...] = ()
    deadline: float | None = None
    """Past it, no more steps are made."""
    submitted_at: float = field(default_factory=time.monotonic)
    """Both on ``time.monotonic``'s clock."""
    progress: bool = False
    """Whether the listener hears of every step."""
    previews: int = 0
    """Most small pictures of what each is becoming, spread over its steps."""
    timeline: Timeline = field(default_factory=Timeline)
    """Where the engine notes when what happened."""

    def is_previewed(self, step: int, steps: int) -> bool:
        """Whether a small picture is due after this step."""
        parts = self.previews + 1
        return step * parts // steps > (step - 1) * parts // steps


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step of one picture is made."""

    picture: int
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a picture was becoming after a step. A slow decoder makes fewer of them, not a queue."""

    picture: int
    step: int
    pixels: np.ndarray
    """(h, w, 3) in uint8, smaller than the picture."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The pictures of an order, in the order of its seeds."""

    pictures: tuple[np.ndarray, ...]
    """Each (H, W, 3) in uint8."""
    prompt: str
    """The prompt that was drawn: the rewritten one, if it was."""
    adapters: tuple[Adapter, ...]
    """In the order in which the order names them."""


Event = Progress | Preview | Drawn | Exception
Listener = Callable[[Order, Event], None]
"""Called from any thread. Every order ends with one ``Drawn`` or one exception, unless it is cancelled."""
