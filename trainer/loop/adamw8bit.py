"""torchao's AdamW with 8-bit averages, also where torch cannot compile, which torchao's own step always does.

A compiled step is one kernel a parameter instead of tens, which matters on a GPU alone. On a CPU, compiling takes minutes.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torchao.optim import AdamW8bit

from longcat.logs import log_event
from longcat.model.device.choice import compilers

_log = logging.getLogger("lithograph.trainer")


class _WithoutCompiler(AdamW8bit):
    """The same steps, operation by operation."""

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Make a step of which nothing is compiled."""
        with torch.compiler.set_stance("force_eager"):
            return super().step(closure)


def make_adamw8bit(parameters: Sequence[nn.Parameter], **options: Any) -> Optimizer:
    """Return the optimizer. On a GPU without a working compiler it logs a warning, as its steps take longer."""
    on_gpu = parameters[0].device.type != "cpu"
    reason = _failure(parameters[0], **options) if on_gpu else None
    if reason is not None:
        log_event(_log, "optimizer_not_compiled", logging.WARNING, optimizer="adamw8bit", reason=reason)
    kind = AdamW8bit if on_gpu and reason is None else _WithoutCompiler
    optimizer: Optimizer = kind(parameters, **options)
    return optimizer


def _failure(like: nn.Parameter, **options: Any) -> str | None:
    """Compile a step of a parameter of this shape; return the error's first line if that fails.

    A step cannot be tried on the parameters themselves: one that fails has counted itself in their state.
    """
    names = compilers(like.device)
    if not any(map(shutil.which, names)):
        return f"none of {', '.join(names)} is installed"
    trial = nn.Parameter(torch.zeros_like(like))
    trial.grad = torch.zeros_like(like)
    try:
        AdamW8bit([trial], **options).step()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # the compiler's errors, whose classes differ by what is missing
        return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return None
