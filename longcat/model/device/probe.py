"""Devices of this machine, read from torch in a child process, so that the caller imports no torch."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass

from longcat.errors import DeviceError
from longcat.problem import reason_of

_CODE = "from longcat.model.device.probe import print_devices; print_devices({index})"


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """Result of the device probe."""

    gpu: str | None
    """Name of the CUDA GPU; None without one."""
    gpu_bytes: int | None
    """All of its memory, whether other programs use it or not."""
    threads: int
    """Threads that torch computes with on a CPU."""


def start_probe(index: int = 0) -> subprocess.Popen[str]:
    """Start the child process that reads the facts, with the GPU of that index. Raises ``DeviceError``."""
    command = [sys.executable, "-P", "-c", _CODE.format(index=index)]
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise _not_detected(reason_of(error)) from error


def probe_result(probe: subprocess.Popen[str]) -> DeviceFacts:
    """Wait for the facts of a probe. Raises ``DeviceError`` if torch cannot be asked, or the probe was killed."""
    output, log = probe.communicate()
    if probe.returncode:
        raise _not_detected(log.strip().rpartition("\n")[2] or f"exit code {probe.returncode}")
    return DeviceFacts(**json.loads(output.splitlines()[-1]))


def probe_devices(index: int = 0) -> DeviceFacts:
    """Return the facts of this machine, with the GPU of that index. Raises ``DeviceError`` if torch cannot be asked."""
    return probe_result(start_probe(index))


def _not_detected(reason: str) -> DeviceError:
    return DeviceError(
        "devices_not_detected",
        "this machine's devices cannot be detected: {reason}",
        remedy="check that torch is installed",
        reason=reason,
    )


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
