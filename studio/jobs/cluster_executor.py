"""An executor that runs each job as a Kubernetes Job of the same name. No torch.

Progress is read from ``run.json`` where the volume with the trainings is mounted here, else from the log of the pod. Replies
of the cluster are cached for a few seconds, because pages and the queue request them often.
"""

import json
import time
from pathlib import Path
from typing import Any

from typing_extensions import override

from lithograph.kubernetes.cluster import Cluster
from lithograph.kubernetes.connection import connect
from lithograph.kubernetes.job_status import JobState
from lithograph.kubernetes.training_job import TrainingJob
from longcat.errors import ClusterError, JobNameTakenError, UnknownJobError
from longcat.problem import Problem
from longcat.storage.atomic import write_atomically
from studio.jobs.cluster_settings import ClusterSettings
from studio.jobs.executor import Executor, ExecutorStatus, run_in, steps_in, tail
from studio.jobs.log_record import metrics_of_log, record_of_log
from studio.jobs.record import CONFIG_FILE, EXIT_FILE, LOG_FILE, JobRecord
from trainer.config.options import TrainConfig
from trainer.config.reading.file import load_config
from trainer.record.run_file import MetricsLine, RunRecord

_KEPT_SECONDS = 3.0
_LOG_LINES = 2000
_DATA, _ADAPTERS = "/data", "file:///adapters"


class ClusterExecutor(Executor):
    """One namespace of a cluster."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._cluster: Cluster | None = None
        self._statuses: dict[str, tuple[float, ExecutorStatus | ClusterError]] = {}
        self._logs: dict[str, tuple[float, str]] = {}

    def options(self, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """Return the options with paths inside the pod. Raises ``ConfigError`` or ``JobError`` if a pod cannot have them."""
        options = config.model_dump(mode="json", exclude_defaults=True)
        if config.instance_data_dir is not None:
            options["instance_data_dir"] = self._in_the_pod(config.instance_data_dir)
        for dataset in options.get("data_backend_config", ()):
            if "instance_data_dir" in dataset:
                dataset["instance_data_dir"] = self._in_the_pod(dataset["instance_data_dir"])
        options.setdefault("publish_to", _ADAPTERS)
        self._training_job(folder.name, TrainConfig.model_validate(options))
        return options

    def start(self, job: JobRecord, folder: Path) -> JobRecord:
        """Submit the job. While the Job of an earlier attempt is being deleted, do nothing: the next call retries."""
        config, _ = load_config(folder / CONFIG_FILE, {})
        (folder / EXIT_FILE).unlink(missing_ok=True)
        self._statuses.pop(job.id, None)
        cluster = self._connected()
        try:
            status = cluster.submit(self._training_job(job.id, config))
        except JobNameTakenError:
            cluster.cancel(job.id)
            return job
        return job.model_copy(update={"remote": f"{status.namespace}/{status.name}", "tries": job.tries + 1})

    def status(self, job: JobRecord, folder: Path) -> ExecutorStatus:
        """Return a job's status. A final status is stored, because clusters delete finished Jobs."""
        if (noted := _noted(folder)) is not None:
            return noted
        until, kept = self._statuses.get(job.id, (0.0, ExecutorStatus(is_alive=True)))
        if time.monotonic() >= until:
            kept = self._ask(job, folder)
            self._statuses[job.id] = (time.monotonic() + _KEPT_SECONDS, kept)
        if isinstance(kept, ClusterError):
            raise kept
        return kept

    def stop(self, job: JobRecord, folder: Path, *, at_once: bool) -> None:
        """Delete the Job; its pod saves a checkpoint first, unless ``at_once``."""
        self._save_log(job, folder)
        self._statuses.pop(job.id, None)
        try:
            self._connected().cancel(job.id, at_once=at_once)
        except UnknownJobError:  # deleted already
            return

    def log_tail(self, job: JobRecord, folder: Path, lines: int) -> str:
        """Return the end of the log of the newest pod, or of its stored copy."""
        self._save_log(job, folder)
        return tail(folder / LOG_FILE, lines)

    @override
    def output(self, job: JobRecord, folder: Path) -> Path | None:
        """Return the output directory on the volume, if it is mounted here."""
        found = self._settings.training_dir / job.id if self._settings.training_dir else None
        return found if found is not None and found.is_dir() else None

    def run(self, job: JobRecord, folder: Path) -> RunRecord | None:
        """Return the run record from ``run.json``, or else from the log."""
        output = self.output(job, folder)
        return run_in(output) if output else record_of_log(self.log_tail(job, folder, _LOG_LINES), job)

    def metrics(self, job: JobRecord, folder: Path, after_step: int) -> list[MetricsLine]:
        """Return the steps from ``metrics.jsonl``, or else from the log."""
        output = self.output(job, folder)
        if output is not None:
            return steps_in(output, after_step)
        return metrics_of_log(self.log_tail(job, folder, _LOG_LINES), after_step)

    def discard(self, job: JobRecord, folder: Path) -> None:
        """Delete the Job; data on volumes stays."""
        if job.remote is not None:
            self.stop(job, folder, at_once=True)

    def _ask(self, job: JobRecord, folder: Path) -> ExecutorStatus | ClusterError:
        try:
            status = self._connected().status(job.id)
        except UnknownJobError:
            return ExecutorStatus(is_alive=False)
        except ClusterError as error:
            return error
        if not status.state.is_over:
            return ExecutorStatus(is_alive=True, is_waiting=status.state is JobState.QUEUED, reason=status.message)
        code = 0 if status.state is JobState.SUCCEEDED else status.exit_code or 1
        final = ExecutorStatus(is_alive=False, exit_code=code, reason=status.message)
        self._logs.pop(job.id, None)
        self._save_log(job, folder)
        reason = None if status.message is None else status.message.to_json()
        write_atomically(folder / EXIT_FILE, json.dumps({"exit_code": code, "reason": reason}).encode())
        return final

    def _save_log(self, job: JobRecord, folder: Path) -> None:
        """Fetch the log, unless the stored copy is recent or complete."""
        until, _ = self._logs.get(job.id, (0.0, ""))
        if job.remote is None or time.monotonic() < until or (folder / EXIT_FILE).exists():
            return
        try:
            text = "\n".join(self._connected().logs(job.id, tail=_LOG_LINES))
        except (ClusterError, UnknownJobError):  # the stored copy is the best available
            text = ""
        self._logs[job.id] = (time.monotonic() + _KEPT_SECONDS, text)
        if text:
            write_atomically(folder / LOG_FILE, (text + "\n").encode(), durable=False)

    def _connected(self) -> Cluster:
        if self._cluster is None:
            settings = self._settings
            self._cluster = connect(
                kubeconfig=settings.kubeconfig, context=settings.context, namespace=settings.namespace
            )
        return self._cluster

    def _training_job(self, name: str, config: TrainConfig) -> TrainingJob:
        return TrainingJob(name=name, config=config, settings=self._settings)

    def _in_the_pod(self, path: str) -> str:
        root = self._settings.data_dir
        if root is not None and Path(path).is_relative_to(root):
            return str(Path(_DATA) / Path(path).relative_to(root))
        return path


def _noted(folder: Path) -> ExecutorStatus | None:
    try:
        fields = json.loads((folder / EXIT_FILE).read_bytes())
    except FileNotFoundError:
        return None
    reason = None if fields["reason"] is None else Problem.from_json(fields["reason"])
    return ExecutorStatus(is_alive=False, exit_code=fields["exit_code"], reason=reason)
