"""Full-size models on the meta device, and the most bytes that a computation on it would have in use."""

import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override


class _Tracker(TorchDispatchMode):
    """Counts the storages of results from their first use to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.used = self.peak = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "meta":
                self._count(leaf.untyped_storage(), before)
        return result

    def _count(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage._cdata
        if key in self.known or key in before:
            return
        self.known.add(key)
        self.used += storage.nbytes()
        self.peak = max(self.peak, self.used)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.used -= size


def peak_of(compute: Callable[[], object]) -> int:
    """Return the most bytes in use while ``compute`` runs, with attention that keeps no scores, as on a GPU."""
    tracker = _Tracker()
    with (
        mock.patch("torch.nn.functional.scaled_dot_product_attention", lambda query, *_: torch.empty_like(query)),
        tracker,
        torch.no_grad(),
    ):
        compute()
    return tracker.peak
