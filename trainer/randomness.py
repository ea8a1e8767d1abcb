"""Stateless randomness: every random number follows from the seed and from its purpose.

A run that was killed and resumed therefore repeats the numbers that it would have had, a picture's noise does not depend on
its process or its place in a batch, and a checkpoint needs no generator's state.
"""

import hashlib
import random

import torch


def derive(*parts: int | str) -> int:
    """Return a seed below 2**63 for one purpose."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def python_rng(*parts: int | str) -> random.Random:
    """Return a generator for choices and shuffling."""
    return random.Random(derive(*parts))


def torch_rng(*parts: int | str) -> torch.Generator:
    """Return a generator for tensors, on the CPU: its numbers do not depend on the device."""
    return torch.Generator("cpu").manual_seed(derive(*parts))
