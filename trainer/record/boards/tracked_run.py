"""A run in MLflow or in Weights & Biases, through accelerate's trackers. Imports either when a run is opened, not before."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

_MLFLOW_STATES = {"finished": "FINISHED", "preempted": "KILLED"}
_MLFLOW_BATCH = 1000
"""Most metrics that MLflow's server takes in one request."""
_SERVER_ERROR = 500
"""Least HTTP status of an error after which another attempt may succeed."""


class Values(NamedTuple):
    """The configuration of a training."""

    config: Mapping[str, Any]


class Point(NamedTuple):
    """One point of each curve."""

    step: int
    time: float
    """Seconds since 1970."""
    values: Mapping[str, float]


class Pictures(NamedTuple):
    """The pictures of one validation."""

    step: int
    files: tuple[Path, ...]


Item = Values | Point | Pictures


class RejectedError(Exception):
    """The tracker was reached and does not accept an item, now or later."""


@dataclass(frozen=True, kw_only=True)
class TrackedRunSettings:
    """The place of a run in a tracker."""

    project: str
    run_name: str
    run_id: str | None
    """Id of the run to continue."""
    new_id: str
    """Id of a new run, where the client decides it."""
    folder: Path
    """Place of local files."""


class TrackedRun(Protocol):
    """An open run. Its methods raise ``RejectedError``, or the client's own errors if it cannot be reached."""

    id: str

    def send(self, items: Sequence[Item]) -> None:
        """Send items in order."""

    def finish(self, state: str) -> None:
        """End the run as finished, preempted or failed."""


class MlflowRun:
    """A run of an MLflow server, configured by ``MLFLOW_TRACKING_URI`` and other MLFLOW variables."""

    def __init__(self, settings: TrackedRunSettings) -> None:
        import mlflow
        from mlflow import environment_variables as variables

        # The defaults are minutes of retries, and a link in standard output that may have a password.
        for variable, value in (
            (variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES, 1),
            (variables.MLFLOW_HTTP_REQUEST_TIMEOUT, 10),
            (variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, True),
        ):
            if not variable.is_set():
                variable.set(value)
        logging.getLogger("urllib3.connectionpool").setLevel(
            logging.ERROR
        )  # each retry of an outage that is logged once
        self._mlflow = mlflow
        self._client = mlflow.MlflowClient()
        self._is_new = settings.run_id is None
        try:
            self._tracker = _started_mlflow(settings, settings.run_id)
        except mlflow.MlflowException as error:
            if self._is_new or error.error_code not in _RUN_IS_GONE:
                raise
            self._is_new = True
            self._tracker = _started_mlflow(settings, None)
        self.id = str(self._tracker.tracker.info.run_id)

    def send(self, items: Sequence[Item]) -> None:
        """Send metrics in batches, then configuration and pictures."""
        try:
            metrics = [
                self._mlflow.entities.Metric(name, value, int(item.time * 1000), item.step)
                for item in items
                if isinstance(item, Point)
                for name, value in item.values.items()
            ]
            for start in range(0, len(metrics), _MLFLOW_BATCH):
                self._client.log_batch(self.id, metrics=metrics[start : start + _MLFLOW_BATCH])
            for item in items:
                if isinstance(item, Values) and self._is_new:  # MLflow's parameters cannot change
                    self._tracker.store_init_configuration(dict(item.config))
                if isinstance(item, Pictures):
                    self._send_pictures(item)
        except self._mlflow.exceptions.RestException as error:
            if error.get_http_status_code() < _SERVER_ERROR:
                raise RejectedError(str(error)) from error
            raise

    def _send_pictures(self, pictures: Pictures) -> None:
        for file in pictures.files:
            with _opened(file) as picture:
                self._client.log_image(
                    self.id, picture, key=f"validation/{file.stem}", step=pictures.step, synchronous=True
                )

    def finish(self, state: str) -> None:
        """End the run."""
        self._mlflow.end_run(_MLFLOW_STATES.get(state, "FAILED"))


class WandbRun:
    """A run in Weights & Biases, configured by ``WANDB_API_KEY``, ``WANDB_MODE`` and other WANDB variables."""

    def __init__(self, settings: TrackedRunSettings) -> None:
        import wandb
        from accelerate import PartialState
        from accelerate.tracking import WandBTracker

        PartialState(cpu=True)
        self.id = settings.run_id or settings.new_id
        options = wandb.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_save_requirements=False,
            x_disable_meta=True,  # the command line, which may have passwords
            init_timeout=10, finish_timeout=10,
        )  # fmt: skip
        self._tracker = WandBTracker(
            settings.project, id=self.id, name=settings.run_name, resume="allow", dir=str(settings.folder),
            settings=options,
        )  # fmt: skip
        self._tracker.start()

    def send(self, items: Sequence[Item]) -> None:
        """Send items in order. A step that the run has already, from before it was resumed, is left out by the client."""
        for item in items:
            match item:
                case Values():
                    self._tracker.store_init_configuration(dict(item.config))
                case Point():
                    self._tracker.log(dict(item.values), step=item.step)
                case Pictures():
                    for file in item.files:
                        with _opened(file) as picture:
                            self._tracker.log_images({f"validation/{file.stem}": [picture]}, step=item.step)

    def finish(self, state: str) -> None:
        """End the run; one that did not finish is shown as failed until it is resumed."""
        self._tracker.tracker.finish(exit_code=0 if state == "finished" else 1)


RUNS: Mapping[str, Callable[[TrackedRunSettings], TrackedRun]] = {"mlflow": MlflowRun, "wandb": WandbRun}
_RUN_IS_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""Error codes of MLflow for a run that was deleted, or is of another server."""


def _started_mlflow(settings: TrackedRunSettings, run_id: str | None) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker

    PartialState(cpu=True)  # accelerate's trackers log with it; a distributed training has one already
    tracker = MLflowTracker(experiment_name=settings.project, run_name=settings.run_name, run_id=run_id)
    tracker.start()
    return tracker


def _opened(file: Path) -> Image.Image:
    """Open a picture. Raises ``RejectedError`` if it is gone."""
    try:
        return Image.open(file)
    except OSError as error:
        raise RejectedError(str(error)) from error
