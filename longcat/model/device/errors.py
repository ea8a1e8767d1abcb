"""Errors of a GPU: memory that runs out, after which a smaller computation succeeds, and those after which none does."""

import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

_Result = TypeVar("_Result")
_CUDA_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation: the driver's own allocations, such as a kernel's code, raise it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the device had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY
    )


def is_device_lost(error: BaseException) -> bool:
    """Return True if every later operation of this process on the device fails too, as after an illegal access."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def free_memory(error: BaseException) -> None:
    """Free what a computation that ran out of memory had allocated. Call it outside the handler of the error.

    The frames in the error's traceback keep activations alive; torch keeps freed memory in blocks of its own sizes.
    """
    raised: BaseException | None = error
    while raised is not None:
        traceback.clear_frames(raised.__traceback__)
        raised = raised.__cause__ or raised.__context__
    torch.cuda.empty_cache()


def first_that_fits(*attempts: Callable[[], _Result]) -> _Result:
    """Return the result of the first attempt that fits into device memory. Raises the error of the last one."""
    for attempt in attempts[:-1]:
        result = _attempted(attempt)
        if not isinstance(result, RuntimeError):
            return result
        free_memory(result)
    return attempts[-1]()


def _attempted(attempt: Callable[[], _Result]) -> _Result | RuntimeError:
    try:
        return attempt()
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        if not is_out_of_memory(error):
            raise
        return error
