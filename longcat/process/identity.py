"""The identity of a process that outlives its parent: its number and its start time."""

import psutil

_TOLERANCE_SECONDS = 0.1


def started_after_boot(pid: int) -> float:
    """Return the seconds from the boot of the machine to the start of a process. Raises ``psutil.NoSuchProcess``.

    Seconds since 1970, as ``psutil`` has them, would change with every correction of the wall clock.
    """
    return float(psutil.Process(pid).create_time() - psutil.boot_time())


def is_process(pid: int, started: float) -> bool:
    """Return True if the process of this number started at that time: a later one may have the same number."""
    try:
        return abs(started_after_boot(pid) - started) < _TOLERANCE_SECONDS
    except psutil.NoSuchProcess:
        return False
