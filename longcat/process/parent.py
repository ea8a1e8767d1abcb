"""Ending a process when the process that it works for ends, also by SIGKILL. Works on Linux and macOS.

A child that ``multiprocessing`` started holds one end of a pipe whose other end closes with its parent: a thread waits for
that. On Linux, the kernel kills the child too, even one that is stopped and runs no thread. A command that another program
started knows its parent's process id only: a thread compares.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time

PARENT_OPTION = "--parent-pid"
"""The option of the ``lithograph`` command, before the subcommand, that makes it call ``stop_with_parent``."""
_PR_SET_PDEATHSIG = 1
"""From Linux's ``sys/prctl.h``."""
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 60.0
"""From SIGTERM to SIGKILL for a command whose parent has ended: it may finish requests, or write a checkpoint."""


def end_with_parent() -> None:
    """End this process, which ``multiprocessing`` started, as soon as its parent ends.

    On Linux, it also ends with the parent's thread that started it: that thread has to live as long as the process.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        kill_with_parent()
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def kill_with_parent() -> None:
    """Make Linux' kernel kill this process when its parent's thread that started it ends; elsewhere, do nothing.

    It holds for as long as the calling thread lives. The kernel does not report a parent that has ended before: the one that
    adopts its children is in another process group than they are.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getpgid(os.getppid()) != os.getpgrp():
            os.kill(os.getpid(), signal.SIGKILL)


def stop_with_parent(pid: int) -> None:
    """Send this process SIGTERM once its parent is no longer the process ``pid``, and SIGKILL a minute later."""

    def watch() -> None:
        while os.getppid() == pid:
            time.sleep(_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()
