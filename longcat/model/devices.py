"""Devices of this machine, read from torch in a child process: whoever asks imports no torch."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass

from longcat.errors import DeviceError
from longcat.problem import reason_of

_CODE = "from longcat.model.devices import print_devices; print_devices({index})"


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """Result of the device probe."""

    gpu: str | None
    """Name of the CUDA GPU; None without one."""
    gpu_bytes: int | None
    """All of its memory, whether other programs use it or not."""
    threads: int
    """Threads that torch computes with on a CPU."""


def probe_devices(index: int = 0) -> DeviceFacts:
    """Return the facts of this machine, with the GPU of that index. Raises ``DeviceError`` if torch cannot be asked."""
    command = [sys.executable, "-P", "-c", _CODE.format(index=index)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
        raise DeviceError(
            "devices_not_detected", "this machine's devices cannot be detected: {reason}",
            remedy="check that torch is installed", reason=log.rpartition("\n")[2] or reason_of(error),
        ) from error  # fmt: skip
    return DeviceFacts(**json.loads(done.stdout.splitlines()[-1]))


def read_devices(index: int = 0) -> DeviceFacts:
    """Return the facts of this machine, read in this process, which imports torch."""
    import torch

    has_gpu = torch.cuda.is_available() and index < torch.cuda.device_count()
    return DeviceFacts(
        gpu=torch.cuda.get_device_name(index) if has_gpu else None,
        gpu_bytes=torch.cuda.get_device_properties(index).total_memory if has_gpu else None,
        threads=torch.get_num_threads(),
    )


def print_devices(index: int) -> None:
    """Print the facts as one line of JSON."""
    print(json.dumps(dataclasses.asdict(read_devices(index))))
