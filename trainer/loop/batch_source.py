"""The batches of a process, in the order of the run. For a GPU, the next one is made while the device computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from trainer.loop.sampler import Sampler
from trainer.loop.step import Objective


class BatchSource:
    """Batches on the device, by their number in the run."""

    def __init__(
        self, objective: Objective[Any], sampler: Sampler, *, device: torch.device, size: int, rank: int
    ) -> None:
        """``size``: pictures of a batch in each process; ``rank``: number of this process."""
        self._objective = objective
        self._sampler = sampler
        self._device = device
        self._size = size
        self._first = rank * size
        self._ahead: tuple[int, Future[Any]] | None = None
        self._thread = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None

    def batch(self, number: int) -> Any:
        """Return a batch. Its random numbers follow from its number alone, so that reading ahead changes none."""
        if self._thread is None:
            return _converted(self._make(number), lambda tensor: tensor.to(self._device))
        ahead = (
            self._ahead[1].result() if self._ahead is not None and self._ahead[0] == number else self._pinned(number)
        )
        self._ahead = number + 1, self._thread.submit(self._pinned, number + 1)
        return _converted(ahead, lambda tensor: tensor.to(self._device, non_blocking=True))

    def _pinned(self, number: int) -> Any:
        """Return a batch in memory that the device copies from without the host's help."""
        return _converted(self._make(number), Tensor.pin_memory)

    def _make(self, number: int) -> Any:
        indices = self._sampler.batch(number)[self._first : self._first + self._size]
        return self._objective.batch(number, indices, first=self._first)


def _converted(batch: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    converted: dict[str, Any] = {name: convert(value) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(batch, **converted)
