"""What a group of checks works with: its checks, the settings and the model."""

import gc
from dataclasses import dataclass

import torch

from benchmarks.gpu_check.checks import Checks
from benchmarks.gpu_check.settings import Settings
from benchmarks.gpu_check.subjects.models import CheckedModel, empty_cache
from longcat.model.device_errors import is_device_lost


@dataclass(frozen=True, kw_only=True)
class Kit:
    """The checks of a group, the settings and the model."""

    checks: Checks
    settings: Settings
    model: CheckedModel

    @property
    def device(self) -> torch.device:
        """The device under check."""
        return self.model.device

    @property
    def sides_px(self) -> tuple[int, ...]:
        """Sides of the pictures that are measured."""
        if self.settings.is_full:
            return (1024,) if self.settings.is_short else (512, 1024, 2048)
        return (self.model.side_px,) if self.settings.is_short else (64, self.model.side_px)

    @property
    def rounds(self) -> int:
        """Measurements of which the median counts."""
        return 1 if self.settings.is_short else 5 if self.settings.is_full else 2


def make_kit(checks: Checks, settings: Settings) -> Kit:
    """Return the kit of a process; the memory of a check is freed after it."""

    def free(error: BaseException | None) -> str:
        if error is not None and is_device_lost(error):
            return "the device was lost in an earlier check of this process"
        if error is not None:
            error.__traceback__ = None  # its frames keep tensors alive
        gc.collect()
        empty_cache()
        return ""

    checks.after = free
    return Kit(checks=checks, settings=settings, model=CheckedModel(settings))
