"""The start of engine processes: spawned, or forked from a process that has imported torch already."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""CUDA's, ROCm's and WSL's."""


def engine_context(device: str) -> ForkServerContext | SpawnContext:
    """Return the context that starts engine processes which compute on ``device``.

    On a CPU, a fork server imports torch once, so that an engine process that ended is replaced in a second. CUDA does not
    work in a forked process once its devices were counted, and torchao counts them while it is imported.
    """
    is_cpu = device == "cpu" or (device == "auto" and not any(Path(path).exists() for path in _GPU_FILES))
    if sys.platform != "linux" or not is_cpu:  # macOS: its system libraries do not work in a forked process
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["service.process.preload"])
    return context


def see_only(device: str) -> str:
    """Let this process see one GPU alone, and return its name here: ``cuda:N`` is ``cuda:0`` then. Other devices stay.

    Kernels that libraries start by themselves use a process's first GPU, wherever their tensors are; each GPU that a process
    sees can cost it memory; and of several MIG instances a process sees only the first. Called before torch is imported:
    CUDA reads ``CUDA_VISIBLE_DEVICES`` once.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return device
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if visible and int(number) >= len(visible):
        return device  # there is none: torch says so
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number)].strip() if visible else number
    return "cuda:0"


def begin_imports(devices: Iterable[str]) -> None:
    """Start the fork server, if an engine process on one of the devices is forked.

    Its imports take longer than the rest of a start. They run beside the caller's own imports this way.
    """
    if any(isinstance(engine_context(device), ForkServerContext) for device in devices):
        with ctrl_c_held():
            forkserver.ensure_running()


@contextmanager
def ctrl_c_held() -> Iterator[None]:
    """Hold Ctrl-C back from the processes that this thread starts, until they call ``ignore_ctrl_c``.

    It reaches the whole process group, and would end a process that still imports its modules with a traceback.
    """
    resource_tracker.ensure_running()  # its start would end the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_ctrl_c() -> None:
    """Ignore Ctrl-C in this process, also one that was held back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
