"""How much of a device's memory is in use."""

import functools

import psutil
import torch


def memory_of(device: torch.device) -> dict[str, int]:
    """Bytes by kind: ``used``, ``total``, and what else the device tells (``reserved``, ``peak``).

    On a CPU, ``used`` is what this process has in memory.
    """
    match device.type:
        case "cuda":
            return {
                "used": torch.cuda.memory_allocated(device),
                "reserved": torch.cuda.memory_reserved(device),
                "peak": torch.cuda.max_memory_allocated(device),
                "total": torch.cuda.get_device_properties(device).total_memory,
            }
        case "mps":
            return {
                "used": torch.mps.current_allocated_memory(),
                "reserved": torch.mps.driver_allocated_memory(),
                "total": torch.mps.recommended_max_memory(),
            }
        case _:
            return {"used": _process().memory_info().rss, "total": psutil.virtual_memory().total}


@functools.cache
def _process() -> psutil.Process:
    return psutil.Process()
