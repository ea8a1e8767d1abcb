"""The metrics of all processes of a server: as the reply of ``GET /metrics``, and after the end of a process."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from longcat.logs import log_event
from service.observability.metrics import EXEMPLARS
from service.observability.values_file import fold
from service.run_folder import LOCK_FILE

log = logging.getLogger("lithograph")


def exposition(accept: str) -> tuple[bytes, str]:
    """Return all processes' metrics and the content type: OpenMetrics with exemplars if the client accepts it, else text."""
    registry = CollectorRegistry()
    collector = _WithExemplars()
    registry.register(collector)
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # it raises for a version that is not a number
        encode, content_type = choose_encoder("")
    with _locked(collector.folder, fcntl.LOCK_SH):
        return encode(registry), content_type


class _WithExemplars(MultiProcessCollector):
    """Adds exemplars to the buckets of requests."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry())  # type: ignore[no-untyped-call]
        self.folder = Path(self._path)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        for metric in super().collect():  # type: ignore[no-untyped-call]
            if metric.name == "lithograph_request_seconds":
                metric.samples = [_exemplified(sample) for sample in metric.samples]
            yield metric


def _exemplified(sample: Sample) -> Sample:
    exemplar = EXEMPLARS.get((sample.labels["status"], sample.labels.get("le", "")))
    return sample if exemplar is None else sample._replace(exemplar=exemplar)


def process_ended(pid: int) -> None:
    """Remove a process's gauges, and add its counts to those of processes that ended earlier."""
    folder = _WithExemplars().folder
    with _locked(folder, fcntl.LOCK_EX):
        for path in folder.glob(f"gauge_*_{pid}.db"):
            path.unlink(missing_ok=True)
        for path in (folder / f"counter_{pid}.db", folder / f"histogram_{pid}.db"):
            try:
                if path.exists():
                    fold(path, path.with_stem(path.stem.replace(str(pid), _ENDED)))
            except OSError as error:  # such as a full disk: the file stays, and still counts
                log_event(log, "metrics_delayed", logging.WARNING, path=str(path), reason=error.strerror)


_ENDED = "0"
"""Stands for a process id in the name of the file with the counts of ended processes."""


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    """Lock the counts: shared to read them, exclusive to move them from one file to another."""
    handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)
