"""The part of an offloaded base that is on the device: one group, and the copies that autograd keeps. No torch.

``longcat.model.offload`` brings a group when one of its modules is called and drops the one before. A copy stays while a
backward pass needs it: until a block's own backward, unless the block is checkpointed and brings its group again.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of an offloaded base, and the weights that a backward pass reads."""

    group_of: Sequence[int]
    """Each block's group, in the order of the forward. With single layers as groups, a group of its own."""
    group_bytes: Sequence[int]
    """Bytes of each group; of the largest layer where layers are groups."""
    kept_bytes: Sequence[int]
    """Bytes of each block that autograd keeps for the block's backward pass."""
    are_layers: bool
    """True if every layer is a group."""

    def held(self, place: int, *, every: int) -> int:
        """Return the bytes on the device in a block's backward pass, while every n-th block (0: none) is checkpointed."""
        is_recomputed = _is_checkpointed(place, every)
        kept = [block for block in range(place + 1) if not _is_checkpointed(block, every) or block == place]
        if self.are_layers:
            return max(self.group_bytes[place], sum(self.kept_bytes[block] for block in kept))
        current = self.group_of[place if is_recomputed else self._last_brought(place, every)]
        others = sum(self.kept_bytes[block] for block in kept if self.group_of[block] != current)
        return self.group_bytes[current] + others

    def _last_brought(self, place: int, every: int) -> int:
        """Return the block whose group is on the device: the last one of the forward, or the last one recomputed."""
        last = len(self.group_of) - 1
        return next((block for block in range(place, last + 1) if _is_checkpointed(block, every)), last)


def _is_checkpointed(place: int, every: int) -> bool:
    return every > 0 and place % every == 0


def block_groups(block_bytes: Sequence[int], kept_bytes: Sequence[int], *, blocks_per_group: int) -> Groups:
    """Return groups of consecutive blocks."""
    group_of = [place // blocks_per_group for place in range(len(block_bytes))]
    starts = range(0, len(block_bytes), blocks_per_group)
    group_bytes = [sum(block_bytes[first : first + blocks_per_group]) for first in starts]
    return Groups(group_of=group_of, group_bytes=group_bytes, kept_bytes=kept_bytes, are_layers=False)


def layer_groups(largest_bytes: Sequence[int], kept_bytes: Sequence[int]) -> Groups:
    """Return a group for each layer; ``largest_bytes``: of the largest layer of each block."""
    places = range(len(kept_bytes))
    return Groups(group_of=places, group_bytes=largest_bytes, kept_bytes=kept_bytes, are_layers=True)
