"""What is under way in the engine: orders, their pictures that are being denoised, and whose turn the next step is."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from longcat.denoise import Denoising
from service.orders import Order
from service.slots import Adapter

Size = tuple[int, int]
"""Height and width in px."""


@dataclass(kw_only=True)
class Job:
    """An order on its way."""

    order: Order
    number: int
    """Of arrival."""
    prompt: str = ""
    embeds: Tensor | None = None
    negative_embeds: Tensor | None = None
    adapters: tuple[Adapter, ...] = ()
    pending: deque[int] = field(default_factory=deque)
    """Pictures that are not admitted yet."""
    pixels: dict[int, np.ndarray] = field(default_factory=dict)
    previewing: set[int] = field(default_factory=set)
    """Pictures whose preview is being made: each has one at a time."""
    over: bool = False
    """Nothing more is to be done or said about it."""

    @property
    def size(self) -> Size:
        """Of its pictures."""
        return self.order.height_px, self.order.width_px

    @property
    def rows_each(self) -> int:
        """Rows of a forward that each of its pictures takes: two with guidance."""
        return 2 if self.negative_embeds is not None else 1


@dataclass(eq=False)
class Running:
    """One of a job's pictures, being denoised."""

    job: Job
    index: int
    picture: Denoising


class Turns:
    """The pictures being denoised. Those of one size are stepped together; sizes take turns, and have so many rows each."""

    def __init__(self, *, max_rows: int, default_size_px: int) -> None:
        """``max_rows``: of a forward at the default size; larger pictures get fewer, for memory grows with the pixels."""
        self._max_rows = max_rows
        self._default_px = default_size_px**2
        self._groups: dict[Size, list[Running]] = {}
        """In the order of their turns; none is empty."""

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def rows(self) -> int:
        """Of all of them."""
        return sum(map(_rows, self._groups.values()))

    def has_room(self, size: Size, rows: int) -> bool:
        """Whether as many rows can be added to the forwards of a size."""
        most = max(2, min(self._max_rows, self._max_rows * self._default_px // (size[0] * size[1])))
        return _rows(self._groups.get(size, [])) + rows <= most

    def add(self, running: Running) -> None:
        """A picture that is stepped from now on."""
        self._groups.setdefault(running.job.size, []).append(running)

    def next(self) -> list[Running]:
        """The pictures whose turn it is; their size is then behind the others."""
        size = next(iter(self._groups))
        self._groups[size] = group = self._groups.pop(size)
        return list(group)

    def remove(self, running: Running) -> None:
        """A picture that is done, or not wanted any more."""
        size = running.job.size
        self._groups[size].remove(running)
        if not self._groups[size]:
            del self._groups[size]

    def of(self, job: Job) -> list[Running]:
        """Those of a job."""
        return [running for running in self._groups.get(job.size, []) if running.job is job]


def _rows(group: list[Running]) -> int:
    return sum(len(running.picture.contexts) for running in group)
