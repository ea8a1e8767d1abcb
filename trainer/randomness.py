"""Randomness without state: every draw follows from the seed and from what it is for.

So a run that was killed and resumed draws what it would have drawn, a picture's noise does not depend on which process or
which place in a batch it falls to, and there is nothing to save.
"""

import hashlib
import random

import torch


def derive(*parts: int | str) -> int:
    """A seed below 2**63 for this purpose alone."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def python_rng(*parts: int | str) -> random.Random:
    """For choices and orders."""
    return random.Random(derive(*parts))  # noqa: S311 - not for secrets


def torch_rng(*parts: int | str) -> torch.Generator:
    """For tensors, on the CPU: the same numbers whatever the device."""
    return torch.Generator("cpu").manual_seed(derive(*parts))
