"""Runs in MLflow and Weights & Biases, sent by a thread. No torch.

A tracker never ends or slows a training: its items wait in a bounded queue, and a failure is logged once.
"""

import importlib.util
import json
import logging
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longcat.errors import ConfigError
from longcat.logs import log_event
from longcat.storage.atomic import write_atomically
from trainer.record.boards.tracked_run import (
    Item,
    Pictures,
    Point,
    RejectedError,
    TrackedRun,
    TrackedRunSettings,
    Values,
)

FOLDER = "trackers"
"""Below output_dir: the id of the run in each tracker, so that a resumed training continues it."""
_SEND_SECONDS = 1.0
_RETRY_SECONDS = 30.0
_CLOSE_SECONDS = 30.0
_MOST_WAITING = 20_000
"""Items that wait for a tracker that cannot be reached; older ones are dropped first."""
_BATCH = 200
_SHOWN = 500
"""Characters of a reason: a client's error may hold a whole page."""
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")

_log = logging.getLogger("lithograph.trainer")


def check_trackers(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a tracker that is not installed, or has neither an address nor a key. Nothing is sent."""
    for name in names:
        if name == "tensorboard":
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin: a directory of that name
            raise ConfigError(
                "tracker_not_installed",
                "{tracker} is not installed",
                remedy="install it: pip install 'lithograph[trackers]'; or leave {tracker} out of report_to",
                field="report_to",
                value=", ".join(names),
                tracker=name,
            )
        _check_settings(name, names)


def _check_settings(name: str, names: Sequence[str]) -> None:
    if name == "mlflow":
        import mlflow

        if not mlflow.is_tracking_uri_set():
            raise ConfigError(
                "tracker_without_address",
                "the address of the MLflow server is missing",
                remedy="set MLFLOW_TRACKING_URI in the environment, as in http://mlflow:5000",
                field="report_to",
                value=", ".join(names),
            )
    else:
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise ConfigError(
                "tracker_without_key",
                "there is no key for Weights & Biases",
                remedy="set WANDB_API_KEY in the environment; or WANDB_MODE=offline, to upload it later by `wandb sync`",
                field="report_to",
                value=", ".join(names),
            )


def without_secrets(value: Any) -> Any:
    """Return text, or JSON of it, without user names and passwords in URLs."""
    if isinstance(value, str):
        return _USER_INFO.sub("***", value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    return [without_secrets(item) for item in value] if isinstance(value, list | tuple) else value


class Tracker:
    """The thread of one tracker. The run is opened when the thread begins, and again later if that failed."""

    def __init__(
        self,
        name: str,
        open_run: Callable[[TrackedRunSettings], TrackedRun],
        output_dir: Path,
        *,
        project: str,
        run_name: str,
        config: Mapping[str, Any],
        resumes: bool,
    ) -> None:
        """Begin a run of that name in a project (MLflow: an experiment); ``resumes`` continues the one of output_dir."""
        self._name = name
        self._open_run = open_run
        self._output_dir = output_dir
        self._id_file = output_dir / FOLDER / f"{name}.json"
        self._settings = TrackedRunSettings(
            project=project,
            run_name=run_name,
            run_id=self._known_id() if resumes else None,
            new_id=secrets.token_hex(4),
            folder=output_dir,
        )
        self._waiting: deque[Item] = deque([Values(without_secrets(config))])
        self._dropped = 0
        self._run: TrackedRun | None = None
        self._has_failed = False
        self._state = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        self._add(Point(step, time.time(), values))

    def pictures(self, step: int, images: Sequence[str]) -> None:
        """Add pictures. ``images`` are files relative to output_dir."""
        self._add(Pictures(step, tuple(self._output_dir / image for image in images)))

    def close(self, state: str) -> None:
        """Send the waiting items and end the run as finished, preempted or failed, within a bounded time."""
        self._state = state
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)
        if (lost := self._dropped + len(self._waiting)) or self._thread.is_alive():
            log_event(_log, "tracker_incomplete", logging.WARNING, tracker=self._name, items_not_sent=lost)

    def _add(self, item: Item) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(item)

    def _work(self) -> None:
        self._attempt()
        while not self._closing.wait(_RETRY_SECONDS if self._has_failed else _SEND_SECONDS):
            self._attempt()
        self._attempt()

    def _attempt(self) -> None:
        """Send all waiting items. Any exception of a client is logged, once for each outage."""
        try:
            if self._run is None:
                self._run = self._open_run(self._settings)
                write_atomically(self._id_file, json.dumps({"run_id": self._run.id}).encode())
            while self._waiting:
                self._send(self._run)
            if self._closing.is_set():
                self._run.finish(self._state)
            self._has_failed = False
        except Exception as error:  # a client's own kinds of errors are many, and none may end a training
            if not self._has_failed:
                note = f"training continues; the tracker is tried again every {_RETRY_SECONDS:g} seconds"
                self._warn("tracker_unreachable", error, note)
            self._has_failed = True

    def _send(self, run: TrackedRun) -> None:
        """Send a batch. It waits again if the tracker was not reached, and is dropped if the tracker rejected it."""
        batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
        try:
            run.send(batch)
        except RejectedError as error:
            self._dropped += len(batch)
            self._warn("tracker_rejected", error, "training continues; these items are not sent again")
        except Exception:  # any other is one of the connection, which the caller logs
            self._waiting.extendleft(reversed(batch))
            raise

    def _warn(self, event: str, error: Exception, note: str) -> None:
        reason = without_secrets(str(error) or type(error).__name__)
        log_event(_log, event, logging.WARNING, tracker=self._name, reason=reason[:_SHOWN], note=note)

    def _known_id(self) -> str | None:
        try:
            known = json.loads(self._id_file.read_text(encoding="utf-8"))["run_id"]
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: the run gets a new one
            return None
        return known if isinstance(known, str) else None
