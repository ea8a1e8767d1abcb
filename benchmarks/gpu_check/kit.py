"""The kit of a group of checks: its checks, the settings and the model. It imports torch when a group needs it."""

import gc
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from benchmarks.gpu_check.checks import GroupChecks
from benchmarks.gpu_check.settings import Settings

if TYPE_CHECKING:
    import torch

    from benchmarks.gpu_check.subjects.models import CheckedModel


@dataclass(frozen=True, kw_only=True)
class Kit:
    """The checks of a group, the settings and the model."""

    checks: GroupChecks
    settings: Settings

    def __post_init__(self) -> None:
        self.checks.after = _free

    @cached_property
    def model(self) -> "CheckedModel":
        """The model that is checked."""
        from benchmarks.gpu_check.subjects.models import CheckedModel

        return CheckedModel(self.settings)

    @property
    def device(self) -> "torch.device":
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


def _free(error: BaseException | None) -> str:
    """Free the memory of a check; return why no later one can run in this process, or nothing."""
    if "torch" not in sys.modules:
        return ""
    import torch

    from longcat.model.device.errors import is_device_lost

    if error is not None and is_device_lost(error):
        return "the device was lost in an earlier check of this process"
    if error is not None:
        error.__traceback__ = None  # its frames keep tensors alive
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return ""
