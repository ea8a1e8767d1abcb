"""Thread counts, where they decide the last bits of a result."""

import contextlib
from collections.abc import Iterator

import torch


def take_share(processes: int) -> None:
    """Use a share of the cores from now on, of so many processes that compute on them."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


@contextlib.contextmanager
def one_core(device: torch.device) -> Iterator[None]:
    """Compute on one core, if the device is a CPU: sums that are split over cores round differently.

    Only the calling thread is affected.
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
