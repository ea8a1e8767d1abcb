"""Devices of this machine, read from torch in a child process, and the memory plan for them. No torch here."""

import json
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass

from longcat.errors import DeviceError, reason_of
from trainer.config.options import TrainConfig
from trainer.memory.forecast import Forecast, forecast

_CODE = """import json, torch
gpus = torch.cuda.device_count()
print(json.dumps({
    "gpu_bytes": torch.cuda.get_device_properties(0).total_memory if gpus else None,
    "gpu": torch.cuda.get_device_name(0) if gpus else None,
    "threads": torch.get_num_threads(),
}))"""
_WAIT_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """Result of the device probe."""

    gpu: str | None
    """Its name; None without one."""
    gpu_bytes: int | None
    threads: int
    """That torch computes with on a CPU."""


class LocalDevices:
    """The machine that the studio runs on; what it has is found out in the background."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="machine")
        self._facts: Future[DeviceFacts] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._facts = self._pool.submit(_look)

    def close(self) -> None:
        """Cancel the probe."""
        self._pool.shutdown(cancel_futures=True)

    def plan(self, config: TrainConfig, *, gpu_gib: int | None = None) -> Forecast:
        """The memory plan here, or on a GPU of so much memory elsewhere. Raises ``UserError`` if it cannot be made."""
        if gpu_gib is not None:
            return forecast(config, gpu_bytes=gpu_gib * 2**30)
        if self._facts is None:
            self.start()
        assert self._facts is not None
        try:
            facts = self._facts.result(_WAIT_SECONDS)
        except StillRunning as error:
            raise DeviceError(
                "devices_not_known_yet",
                "this machine's devices are still being detected",
                remedy="try again in a moment",
            ) from error
        if facts.gpu_bytes is None or config.device == "cpu":
            return forecast(config, cpu_threads=facts.threads)
        return forecast(config, gpu_bytes=facts.gpu_bytes)


def _look() -> DeviceFacts:
    try:
        done = subprocess.run([sys.executable, "-P", "-c", _CODE], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
        raise DeviceError(
            "devices_not_detected", "this machine's devices cannot be detected: {reason}",
            remedy="check that torch is installed", reason=log.rpartition("\n")[2] or reason_of(error),
        ) from error  # fmt: skip
    return DeviceFacts(**json.loads(done.stdout.splitlines()[-1]))
