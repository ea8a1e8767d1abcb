"""Device memory in use."""

import functools

import psutil
import torch


def memory_of(device: torch.device) -> dict[str, int]:
    """Return bytes by kind: ``used``, ``total``, and, where the device reports them, ``reserved`` and ``peak``.

    On a CPU, ``used`` is the resident memory of this process.
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
