"""Devices of this machine, read from torch in a child process, and the memory plan for them. No torch here."""

import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning

from longcat.errors import DeviceError
from longcat.model.device.probe import DeviceFacts, probe_result, start_probe
from trainer.config.options import TrainConfig
from trainer.memory.forecast import Forecast, forecast

_WAIT_SECONDS = 60


class LocalDevices:
    """The machine that the studio runs on; a background thread probes its devices."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="machine")
        self._facts: Future[DeviceFacts] | None = None
        self._probe: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the probe."""
        self._facts = self._pool.submit(self._read)

    def _read(self) -> DeviceFacts:
        self._probe = start_probe()
        return probe_result(self._probe)

    def close(self) -> None:
        """End the probe: importing torch takes seconds, for which nobody who closes the studio waits."""
        if self._probe is not None:
            self._probe.kill()
        self._pool.shutdown(cancel_futures=True)

    def plan(self, config: TrainConfig, *, gpu_gib: int | None = None) -> Forecast:
        """Return the memory plan for this machine, or for a GPU of ``gpu_gib``. Raises ``UserError``."""
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
