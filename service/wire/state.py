"""The state of the service: memory that all its processes share, so that reading it never waits for another process."""

import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

_MODEL_BYTES = 16384
"""Size of the shared buffer; larger than a flavour's path and a revision."""


class ServicePhase(StrEnum):
    """The phases of an engine, and of the shutdown of a server. Only ``READY`` and ``LINGERING`` take requests."""

    LOADING = "loading"
    WARMING_UP = "warming up"
    WAITING = "waiting for adapters"
    READY = "ready"
    RESTARTING = "restarting"
    """The engine process ended and is being restarted."""
    FAILED = "failed"
    """The model cannot be loaded, or the engine process ended too often."""
    LINGERING = "lingering"
    """Shutting down; requests are still accepted until load balancers have noticed."""
    DRAINING = "draining"
    """Shutting down; requests under way may finish."""
    STOPPING = "stopping"
    """Shutting down; the other processes are being ended."""


_PHASES = tuple(ServicePhase)
_PROGRESS = (
    ServicePhase.READY,
    ServicePhase.WAITING,
    ServicePhase.WARMING_UP,
    ServicePhase.LOADING,
    ServicePhase.RESTARTING,
    ServicePhase.FAILED,
)
"""The phases of an engine, from the one closest to serving."""


class EngineState:
    """The phase of the engine of one device, and its loaded model."""

    def __init__(self, name: str) -> None:
        """Begin with ``LOADING``. ``name``: the configured device."""
        shared = multiprocessing.get_context("spawn")
        self._name = name
        self._phase = shared.RawValue("i", 0)
        self._since = shared.RawValue("d", time.monotonic())
        self._processes = shared.RawValue("i", 0)
        self._model = shared.RawArray("c", _MODEL_BYTES)

    @property
    def phase(self) -> ServicePhase:
        """Return the phase, also during a shutdown."""
        return _PHASES[int(self._phase.value)]

    @property
    def since(self) -> float:
        """Return the start of the phase, on ``time.monotonic``'s clock."""
        return float(self._since.value)

    @property
    def processes(self) -> int:
        """Return the number of engine processes so far: the running one is new if it has changed."""
        return int(self._processes.value)

    @property
    def runs(self) -> bool:
        """Return True if the step loop runs, so that commands are carried out."""
        return self.phase in (ServicePhase.WAITING, ServicePhase.READY)

    @property
    def is_ready(self) -> bool:
        """Return True if requests can be sent to the engine."""
        return self.phase is ServicePhase.READY

    @property
    def model(self) -> Mapping[str, Any]:
        """Return the loaded model's device and identity; empty until it is first loaded."""
        if self.phase is ServicePhase.LOADING:  # it may be half written
            return {}
        found: Mapping[str, Any] = json.loads(self._model.value or b"{}")
        return found

    @property
    def device(self) -> str:
        """Return the name of the device: that of the loaded model, before as configured."""
        return str(self.model.get("device", self._name))

    def begin(self, phase: ServicePhase) -> None:
        """Begin a phase."""
        self._since.value = time.monotonic()
        self._phase.value = _PHASES.index(phase)

    def count_process(self) -> None:
        """Count a new engine process, which calls this itself."""
        self._processes.value += 1

    def set_model(self, **properties: Any) -> None:
        """Store the loaded model's description. A restarted engine writes the same bytes."""
        self._model.value = json.dumps(properties, ensure_ascii=False).encode()


class ServiceState:
    """The server's phase and its engines. Made in the main process; the others inherit it or get it at their start."""

    def __init__(self, devices: Sequence[str]) -> None:
        """Begin with an engine for each device."""
        self.engines = tuple(map(EngineState, devices))
        self._shutdown = multiprocessing.get_context("spawn").RawValue("i", 0)

    @property
    def phase(self) -> ServicePhase:
        """Return the phase: the shutdown's once it has begun, else that of the engine closest to serving."""
        if self.is_shutting_down:
            return _PHASES[int(self._shutdown.value)]
        return min((engine.phase for engine in self.engines), key=_PROGRESS.index)

    @property
    def is_shutting_down(self) -> bool:
        """Return True once a shutdown has begun."""
        return bool(self._shutdown.value)

    @property
    def model(self) -> Mapping[str, Any]:
        """Return the description of the first model that was loaded; empty before."""
        return next((engine.model for engine in self.engines if engine.model), {})

    def set_shutdown(self, phase: ServicePhase) -> None:
        """Begin a phase of the shutdown. Only the main process calls it."""
        self._shutdown.value = _PHASES.index(phase)
