"""Every Prometheus metric of the trainer, in a registry of its own; served, pushed, or both. No torch.

What is not known yet is not there: a loss of 0 or a last step in 1970 would be a lie, and would set off alerts.
"""

import logging
import threading
from collections.abc import Mapping
from http.client import HTTPException
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, push_to_gateway, start_http_server

from longcat.errors import ConfigError
from longcat.logs import tell
from trainer.run_record import Phase, State

JOB = "lithograph-trainer"
PUSH_SECONDS = 10
_TIMEOUT_SECONDS = 5
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)

_log = logging.getLogger("lithograph.trainer")


class Metrics:
    """What Prometheus learns of one run."""

    def __init__(self, *, total_steps: int) -> None:
        self.registry = registry = CollectorRegistry()
        unknown = {
            "loss": "Of the last step.",
            "learning_rate": "Of the last step.",
            "gradient_norm": "Of the last step, before clipping.",
            "images_per_second": "Averaged over about the last 50 steps.",
            "eta_seconds": "For the steps that are left.",
            "last_step_timestamp_seconds": "When the last step ended.",
        }
        self._figures = {
            name: Gauge(f"lithograph_trainer_{name}", said, registry=None) for name, said in unknown.items()
        }
        self._has_stepped = False
        self._step = Gauge("lithograph_trainer_step", "Optimizer steps made.", registry=registry)
        target = Gauge("lithograph_trainer_target_steps", "Optimizer steps to be made in all.", registry=registry)
        target.set(total_steps)
        self._step_seconds = Histogram(
            "lithograph_trainer_step_seconds", "One optimizer step.", buckets=_SECONDS, registry=registry
        )
        self._images = Counter("lithograph_trainer_images", "Pictures trained on by this process.", registry=registry)
        self._checkpoints = Counter("lithograph_trainer_checkpoints", "Checkpoints written.", registry=registry)
        self._checkpoint_seconds = Histogram(
            "lithograph_trainer_checkpoint_seconds", "Writing a checkpoint.", buckets=_SECONDS, registry=registry
        )
        self._cache = Counter(
            "lithograph_trainer_cache_entries",
            "Entries that were there already (hit) or have been made.",
            ["kind", "outcome"],
            registry=registry,
        )
        self._validations = Counter(
            "lithograph_trainer_validations", "Validations that passed or failed.", ["outcome"], registry=registry
        )
        for outcome in ("passed", "failed"):
            self._validations.labels(outcome)
        self._state = Gauge("lithograph_trainer_state", "1 for how the run stands.", ["state"], registry=registry)
        self._phase = Gauge("lithograph_trainer_phase", "1 for what is being done.", ["phase"], registry=registry)

    def resumed(self, step: int) -> None:
        """Go on from this step."""
        self._step.set(step)

    def stepped(self, step: int, *, seconds: float, images: int, figures: Mapping[str, float]) -> None:
        """A step was made. ``figures``: all that only a step makes known, by their metrics' names."""
        for name, gauge in self._figures.items():
            gauge.set(figures[name])
            if not self._has_stepped:
                self.registry.register(gauge)
        self._has_stepped = True
        self._step.set(step)
        self._step_seconds.observe(seconds)
        self._images.inc(images)

    def state(self, now: State) -> None:
        """The run stands so."""
        for state in get_args(State):
            self._state.labels(state).set(state == now)

    def phase(self, now: Phase) -> None:
        """The run does this."""
        for phase in get_args(Phase):
            self._phase.labels(phase).set(phase == now)

    def cached(self, kind: str, *, hits: int, made: int) -> None:
        """So many more entries."""
        self._cache.labels(kind, "hit").inc(hits)
        self._cache.labels(kind, "made").inc(made)

    def checkpointed(self, seconds: float) -> None:
        """A checkpoint was written."""
        self._checkpoints.inc()
        self._checkpoint_seconds.observe(seconds)

    def validated(self, *, passed: bool) -> None:
        """A validation was made."""
        self._validations.labels("passed" if passed else "failed").inc()


class Endpoint:
    """``/metrics`` on a port, until closed."""

    def __init__(self, registry: CollectorRegistry, port: int) -> None:
        """Raises ``ConfigError`` if the port is taken."""
        try:
            self._server, self._thread = start_http_server(port, registry=registry)
        except OSError as error:
            raise ConfigError(
                f"metrics_port: {port} cannot be had ({error.strerror or error}); give one that is free"
            ) from error

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Pusher:
    """Pushes to a Pushgateway every ten seconds and once more when closed. A gateway that is away is no reason to stop."""

    def __init__(self, registry: CollectorRegistry, url: str, *, run_id: str) -> None:
        self._registry = registry
        self._url = url
        self._run_id = run_id
        self._has_warned = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pushgateway", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Push what became of the run."""
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
                note = "training goes on; pushing is tried again"
                tell(_log, "pushgateway_unreachable", logging.WARNING, url=self._url, reason=str(error), note=note)
            self._has_warned = True
