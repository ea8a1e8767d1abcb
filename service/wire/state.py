"""The state of the service: memory that all its processes share, so that reading it never waits for another process."""

import json
import multiprocessing
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

_MODEL_BYTES = 16384
"""Size of the shared buffer; larger than a flavour's path and a revision."""


class ServicePhase(StrEnum):
    """The phases of a server. Only ``READY`` and ``LINGERING`` take requests."""

    LOADING = "loading"
    WARMING_UP = "warming up"
    WAITING = "waiting for adapters"
    READY = "ready"
    RESTARTING = "restarting"
    """The engine process ended and is being restarted."""
    FAILED = "failed"
    """The model cannot be loaded."""
    LINGERING = "lingering"
    """Shutting down; requests are still accepted until load balancers have noticed."""
    DRAINING = "draining"
    """Shutting down; requests under way may finish."""
    STOPPING = "stopping"
    """Shutting down; the other processes are being ended."""


_PHASES = tuple(ServicePhase)


class ServiceState:
    """The server's phase and the loaded model. Made in the main process; the others inherit it or get it at their start."""

    def __init__(self) -> None:
        """Begin with ``LOADING``."""
        shared = multiprocessing.get_context("spawn")
        self._engine = shared.RawValue("i", 0)
        self._shutdown = shared.RawValue("i", 0)
        self._since = shared.RawValue("d", time.monotonic())
        self._model = shared.RawArray("c", _MODEL_BYTES)

    @property
    def phase(self) -> ServicePhase:
        """Return the phase: the shutdown's once it has begun, else the engine's."""
        return _PHASES[int(self._shutdown.value or self._engine.value)]

    @property
    def engine_phase(self) -> ServicePhase:
        """Return the engine's phase, also during a shutdown."""
        return _PHASES[int(self._engine.value)]

    @property
    def engine_since(self) -> float:
        """Return the start of the engine's phase, on ``time.monotonic``'s clock."""
        return float(self._since.value)

    @property
    def is_shutting_down(self) -> bool:
        """Return True once a shutdown has begun."""
        return bool(self._shutdown.value)

    @property
    def model(self) -> Mapping[str, Any]:
        """Return the loaded model's device and identity; empty until it is first loaded."""
        if self.engine_phase is ServicePhase.LOADING:  # it may be half written
            return {}
        found: Mapping[str, Any] = json.loads(self._model.value or b"{}")
        return found

    def set_engine(self, phase: ServicePhase) -> None:
        """Begin a phase of the engine."""
        self._since.value = time.monotonic()
        self._engine.value = _PHASES.index(phase)

    def set_shutdown(self, phase: ServicePhase) -> None:
        """Begin a phase of the shutdown. Only the main process calls it."""
        self._shutdown.value = _PHASES.index(phase)

    def set_model(self, **properties: Any) -> None:
        """Store the loaded model's description. A restarted engine writes the same bytes."""
        self._model.value = json.dumps(properties, ensure_ascii=False).encode()
