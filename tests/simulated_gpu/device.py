"""The simulated CUDA device: building its library, attaching it to torch, its counts and its faults."""

import hashlib
import os
import subprocess
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests import ROOT

SOURCE = Path(__file__).parent / "device.cpp"
BUILD = ROOT / "build" / "simulated_gpu"
GIB = 2**30
BYTES_VARIABLE = "SIMULATED_GPU_BYTES"
"""Environment variable with the memory of the device, beyond which nothing is allocated; without it 24 GiB, unbounded."""
TOTAL_BYTES = int(os.environ.get(BYTES_VARIABLE, 24 * GIB))


def build() -> Path:
    """Return the library, compiled against the installed torch on first use."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = BUILD / f"{key}.so"
    if library.exists():
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    torch_folder = Path(torch.__file__).parent
    include, lib = torch_folder / "include", torch_folder / "lib"
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [
        "g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-w", f"-I{include}", f"-I{include}/torch/csrc/api/include",
        str(SOURCE), "-o", str(unfinished), f"-L{lib}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    unfinished.rename(library)
    return library


def is_loaded() -> bool:
    """Return True in a process that was started with the library in LD_PRELOAD."""
    return any(str(BUILD) in path for path in os.environ.get("LD_PRELOAD", "").split(":"))


def attach() -> None:
    """Make ``torch.cuda`` report the device. Call it once, before CUDA is used."""
    torch.ops.load_library(os.environ["LD_PRELOAD"])
    properties = types.SimpleNamespace(
        name="simulated", total_memory=TOTAL_BYTES, major=9, minor=0, multi_processor_count=132
    )
    replaced: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "synchronize": _synchronize,
        "empty_cache": _empty_cache,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "get_arch_list": lambda: ["sm_90"],
        "get_device_capability": lambda _device=None: (9, 0),
        "get_device_name": lambda _device=None: "simulated",
        "get_device_properties": lambda _device=None: properties,
        "memory_allocated": lambda _device=None: _count("used"),
        "memory_reserved": lambda _device=None: _count("used"),
        "max_memory_allocated": lambda _device=None: _count("peak"),
        "reset_peak_memory_stats": lambda _device=None: torch.ops.simulated_gpu.reset_peak(),
        "set_per_process_memory_fraction": _set_memory_fraction,
        "mem_get_info": lambda _device=None: (TOTAL_BYTES - _count("used"), TOTAL_BYTES),
        "manual_seed": lambda _seed: None,
        "manual_seed_all": lambda _seed: None,
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch.version.cuda = "13.0"
    if BYTES_VARIABLE in os.environ:
        torch.ops.simulated_gpu.inject(TOTAL_BYTES, -1, False)


@dataclass(frozen=True)
class Counts:
    """Counts of a program part's use of the device."""

    operations: int
    to_device: int
    """Copies to the device."""
    pageable: int
    """Copies to the device from memory that is not pinned, for which the host waits."""
    to_host: int
    """Copies and numbers to the host."""
    host_bytes: int
    waits: int
    """Number of times that the host waited for a number or a copy."""
    synchronizations: int
    """Calls of ``torch.cuda.synchronize``."""
    peak_bytes: int
    """The most memory in use."""


class Counting:
    """A running count since its creation."""

    def __init__(self) -> None:
        torch.ops.simulated_gpu.reset_counts()
        self._synchronizations = _python_counts.synchronizations

    @property
    def so_far(self) -> Counts:
        """Return the counts so far."""
        return Counts(
            operations=_count("operations"),
            to_device=_count("to_device"),
            pageable=_count("pageable"),
            to_host=_count("to_host"),
            host_bytes=_count("host_bytes"),
            waits=_count("waits"),
            synchronizations=_python_counts.synchronizations - self._synchronizations,
            peak_bytes=_count("peak"),
        )


@contextmanager
def faults(*, free_bytes: int | None = None, fail_after: int | None = None, lost: bool = False) -> Iterator[None]:
    """Make the device fail within the context.

    ``free_bytes``: memory that can still be allocated; ``fail_after``: the number of allocations before the one that fails;
    ``lost``: every operation fails, as after an illegal access.
    """
    capacity = -1 if free_bytes is None else used_bytes() + free_bytes
    torch.ops.simulated_gpu.inject(capacity, -1 if fail_after is None else fail_after, lost)
    try:
        yield
    finally:
        torch.ops.simulated_gpu.inject(-1, -1, False)


@contextmanager
def card(total_bytes: int) -> Iterator[None]:
    """Let the device have so much memory within the context, of which nothing is in use at its start."""
    before, replaced = used_bytes(), torch.cuda.mem_get_info
    torch.cuda.mem_get_info = lambda _device=None: (total_bytes - (used_bytes() - before), total_bytes)
    try:
        with faults(free_bytes=total_bytes):
            yield
    finally:
        torch.cuda.mem_get_info = replaced


def used_bytes() -> int:
    """Return the device memory in use."""
    return _count("used")


class _PythonCounts:
    synchronizations = 0
    emptied = 0


_python_counts = _PythonCounts()


def _synchronize(_device: object = None) -> None:
    _python_counts.synchronizations += 1
    torch.ops.simulated_gpu.synchronize()


def _set_memory_fraction(fraction: float, _device: object = None) -> None:
    torch.ops.simulated_gpu.inject(int(fraction * TOTAL_BYTES) if fraction < 1 else -1, -1, False)


def _empty_cache() -> None:
    _python_counts.emptied += 1


def _count(name: str) -> int:
    number: int = torch.ops.simulated_gpu.count(name)
    return number
