"""How many cores a computation takes, where that decides its last bits."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_core(device: torch.device) -> Iterator[None]:
    """Compute on one core, if on a CPU at all: sums over several come out differently, and would depend on who calls.

    Only the calling thread is held to it.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
