"""The trainer's Prometheus metrics, in their own registry; served, pushed, or both. No torch.

A metric without a value yet is not exported: a loss of 0, or a last step in 1970, would be wrong and set off alerts.
"""

import logging
import threading
from collections.abc import Mapping
from http.client import HTTPException
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, push_to_gateway, start_http_server

from longcat.errors import ConfigError
from longcat.logs import log_event
from longcat.problem import reason_of
from trainer.record.run_file import Phase, State

JOB = "lithograph-trainer"
PUSH_SECONDS = 10
_TIMEOUT_SECONDS = 5
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)

_STEP_GAUGES = {
    "loss": "Loss of the last step.",
    "learning_rate": "Learning rate of the last step.",
    "gradient_norm": "Norm of the last step's gradient, before clipping.",
    "images_per_second": "Pictures per second, averaged over about the last 50 steps.",
    "eta_seconds": "Estimated time for the remaining steps.",
    "last_step_timestamp_seconds": "Time at which the last step ended.",
}
"""Gauges without a value before the first step, with their help."""

_log = logging.getLogger("lithograph.trainer")


class TrainerMetrics:
    """The metrics of one run."""

    def __init__(self, *, total_steps: int) -> None:
        self.registry = registry = CollectorRegistry()
        self._step_gauges = {
            name: Gauge(f"lithograph_trainer_{name}", text, registry=None) for name, text in _STEP_GAUGES.items()
        }
        self._has_stepped = False
        self._step = Gauge("lithograph_trainer_step", "Optimizer steps made.", registry=registry)
        target = Gauge("lithograph_trainer_target_steps", "Optimizer steps of the whole run.", registry=registry)
        target.set(total_steps)
        self._step_seconds = Histogram(
            "lithograph_trainer_step_seconds", "Duration of an optimizer step.", buckets=_SECONDS, registry=registry
        )
        self._images = Counter("lithograph_trainer_images", "Pictures trained on by this process.", registry=registry)
        self._checkpoints = Counter("lithograph_trainer_checkpoints", "Checkpoints written.", registry=registry)
        self._checkpoint_seconds = Histogram(
            "lithograph_trainer_checkpoint_seconds",
            "Duration of writing a checkpoint.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._cache = Counter(
            "lithograph_trainer_cache_entries",
            "Cache entries that existed (hit) or were computed (made).",
            ["kind", "outcome"],
            registry=registry,
        )
        self._validations = Counter(
            "lithograph_trainer_validations", "Validations that passed or failed.", ["outcome"], registry=registry
        )
        self._held_out = Gauge(
            "lithograph_trainer_held_out_loss",
            "Loss on held-out pictures at the last evaluation: of all, of a language, of a quarter of the noise levels.",
            ["part"],
            registry=registry,
        )
        for outcome in ("passed", "failed"):
            self._validations.labels(outcome)
        self._state = Gauge(
            "lithograph_trainer_state", "1 for the current state of the run.", ["state"], registry=registry
        )
        self._phase = Gauge(
            "lithograph_trainer_phase", "1 for the current phase of the run.", ["phase"], registry=registry
        )

    def resumed(self, step: int) -> None:
        """Continue after this step."""
        self._step.set(step)

    def stepped(self, step: int, *, seconds: float, images: int, values: Mapping[str, float]) -> None:
        """Record a step. ``values`` are the values of the metrics that only a step provides."""
        for name, gauge in self._step_gauges.items():
            gauge.set(values[name])
            if not self._has_stepped:
                self.registry.register(gauge)
        self._has_stepped = True
        self._step.set(step)
        self._step_seconds.observe(seconds)
        self._images.inc(images)

    def state(self, now: State) -> None:
        """Set the state of the run."""
        for state in get_args(State):
            self._state.labels(state).set(state == now)

    def phase(self, now: Phase) -> None:
        """Set the phase of the run."""
        for phase in get_args(Phase):
            self._phase.labels(phase).set(phase == now)

    def cached(self, kind: str, *, hits: int, made: int) -> None:
        """Count cache hits and computed entries."""
        self._cache.labels(kind, "hit").inc(hits)
        self._cache.labels(kind, "made").inc(made)

    def checkpointed(self, seconds: float) -> None:
        """Record a checkpoint."""
        self._checkpoints.inc()
        self._checkpoint_seconds.observe(seconds)

    def evaluated(self, figures: Mapping[str, float]) -> None:
        """Set the losses on held-out pictures."""
        for name, loss in figures.items():
            self._held_out.labels(name.removeprefix("loss").removeprefix("_") or "all").set(loss)

    def validated(self, *, passed: bool) -> None:
        """Count a validation."""
        self._validations.labels("passed" if passed else "failed").inc()


class Endpoint:
    """``/metrics`` on a port, until closed."""

    def __init__(self, registry: CollectorRegistry, port: int) -> None:
        """Listen on the port. Raises ``ConfigError`` if it is taken."""
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise ConfigError(
                "metrics_port_unavailable",
                "cannot be opened: {reason}",
                remedy="give a port that is free",
                field="metrics_port",
                value=port,
                reason=reason_of(error),
            ) from error

    def close(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Pusher:
    """A thread that pushes to a Pushgateway every 10 seconds, and once more when closed. A failed push never ends a run."""

    def __init__(self, registry: CollectorRegistry, url: str, *, run_id: str) -> None:
        self._registry = registry
        self._url = url
        self._run_id = run_id
        self._has_warned = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pushgateway", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Push the final values."""
        self._closing.set()
        self._thread.join()
        self._push()

    def _run(self) -> None:
        self._push()
        while not self._closing.wait(PUSH_SECONDS):
            self._push()

    def _push(self) -> None:
        try:
            push_to_gateway(
                self._url,
                job=JOB,
                registry=self._registry,
                grouping_key={"run": self._run_id},
                timeout=_TIMEOUT_SECONDS,
            )
        except (OSError, HTTPException, ValueError) as error:
            if not self._has_warned:
                note = "training continues; the next push is in 10 seconds"
                log_event(_log, "pushgateway_unreachable", logging.WARNING, url=self._url, reason=str(error), note=note)
            self._has_warned = True
