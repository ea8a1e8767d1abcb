"""Every Prometheus metric of the service, in one place.

prometheus-client shares values between processes through files in ``PROMETHEUS_MULTIPROC_DIR``; ``service.run_folder`` sets
it before this module is imported. Label values are bounded: statuses and phases, never prompts.
"""

import contextlib
import fcntl
import logging
import math
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from longcat.logs import log_event
from service.observability.values_file import ValuesFile, fold
from service.run_folder import LOCK_FILE

log = logging.getLogger("lithograph")

vars(values).update(MmapedDict=ValuesFile)  # its own would end the process when the disk is full

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)

REQUESTS = Counter(
    "lithograph_requests", "Requests to POST /generate and /v1/images/generations by HTTP status.", ["status"]
)
REQUEST_SECONDS = Histogram(
    "lithograph_request_seconds", "From a request's arrival to its reply.", ["status"], buckets=_SECONDS
)
PHASE_SECONDS = Histogram(
    "lithograph_phase_seconds",
    "What requests spent in each phase (queue, text, denoise, decode, encode), by what they came to.",
    ["phase", "outcome"],
    buckets=_SECONDS,
)
IN_PROGRESS = Gauge("lithograph_requests_in_progress", "Requests queued or being drawn.", multiprocess_mode="livesum")
PICTURES = Counter(
    "lithograph_pictures",
    "Pictures drawn, by size in px and adapters; beyond the first two hundred pairs, those are (other).",
    ["size", "adapter"],
)
STEPS = Counter("lithograph_steps", "Denoising steps of pictures that were drawn.")
READY = Gauge(
    "lithograph_ready",
    "1 once a warm-up picture is drawn and required adapters are loaded.",
    multiprocess_mode="livemax",
)
HEARTBEAT = Gauge(
    "lithograph_engine_heartbeat_timestamp_seconds",
    "When the engine's step loop last made a step or idled; by the HTTP process's clock.",
    multiprocess_mode="livemax",
)
LOAD_SECONDS = Gauge("lithograph_model_load_seconds", "Loading the model and warming up.", multiprocess_mode="max")
QUEUED = Gauge("lithograph_queued_requests", "Requests that wait for room.", multiprocess_mode="livemostrecent")
ACTIVE_ROWS = Gauge(
    "lithograph_active_rows",
    "Rows being denoised; a picture has two, with guidance.",
    multiprocess_mode="livemostrecent",
)
STEP_SECONDS = Histogram("lithograph_step_seconds", "One forward of pictures of one size.", buckets=_SECONDS)
JOBS = Counter("lithograph_jobs", "Asynchronous jobs that are over, by the HTTP status of their result.", ["status"])
WEBHOOKS = Counter("lithograph_webhooks", "Webhooks that were sent, by whether they arrived in the end.", ["result"])
REJECTED = Counter("lithograph_rejected_requests", "Requests that were not taken in, by the error's code.", ["reason"])
CANCELLED = Counter("lithograph_cancelled_requests", "Requests whose client went away.")
ENGINE_RESTARTS = Counter("lithograph_engine_restarts", "Times that the engine process ended and was started again.")
DEVICE_LOSSES = Counter(
    "lithograph_device_losses", "Errors of the device after which no operation succeeds; the engine process ends."
)
OUT_OF_MEMORY = Counter(
    "lithograph_out_of_memory", "Forwards that ran out of device memory and were repeated with half the rows."
)
ADAPTER_REQUESTS = Counter(
    "lithograph_adapter_requests",
    "Answered requests by adapter; names beyond the first hundred are counted as (other).",
    ["adapter"],
)
ADAPTER_LOAD_SECONDS = Histogram(
    "lithograph_adapter_load_seconds", "Downloading, verifying and reading one version.", buckets=_SECONDS
)
ADAPTER_REFUSALS = Counter(
    "lithograph_adapter_refusals",
    "Versions that were not served: unfit, incomplete in storage, or unreadable.",
    ["reason"],
)
ADAPTER_STORAGE_REACHABLE = Gauge(
    "lithograph_adapter_storage_reachable",
    "1 if the last poll of storage succeeded.",
    multiprocess_mode="livemostrecent",
)
SLOTS = Gauge("lithograph_adapter_slots", "Slots for adapters.", multiprocess_mode="livemostrecent")
SLOTS_USED = Gauge("lithograph_adapter_slots_used", "Slots that hold an adapter.", multiprocess_mode="livemostrecent")
SLOT_LOADS = Counter("lithograph_adapter_slot_loads", "Adapters copied into a slot.")
SLOT_EVICTIONS = Counter("lithograph_adapter_slot_evictions", "Adapters that made room for another in their slot.")
ADAPTER_CACHE = Counter(
    "lithograph_adapter_cache", "Adapters of requests, by where they were: memory, disk or storage.", ["result"]
)
DEVICE_MEMORY = Gauge(
    "lithograph_device_memory_bytes",
    "Of the device: used by tensors (of a CPU: by the engine process), reserved by torch, at the peak, and in all.",
    ["kind"],
    multiprocess_mode="livemostrecent",
)
PROMPT_CACHE = Counter(
    "lithograph_prompt_cache", "Prompt embeddings looked up, by whether they were there.", ["result"]
)
MODEL_INFO = Gauge(
    "lithograph_model_info",
    "Always 1; its labels say what is served.",
    ["flavour", "hash", "precision", "dtype", "device", "version"],
    multiprocess_mode="max",
)


# From the first on: a series that began with 1 would hide its first count from rate() and increase(), and so from alerts.
for _counter, _values in {
    REQUESTS: ("200", "202", "400", "404", "413", "422", "429", "499", "500", "503", "504"),
    REJECTED: ("busy", "not_ready", "draining", "invalid_request", "not_json", "body_too_large"),
    JOBS: ("200", "404", "499", "500", "503", "504"),
    WEBHOOKS: ("delivered", "given_up"),
    ADAPTER_REFUSALS: ("unfit", "incomplete", "unreadable"),
    ADAPTER_CACHE: ("memory", "disk", "storage"),
    PROMPT_CACHE: ("hit", "miss"),
}.items():
    for _value in _values:
        _counter.labels(_value)
for _status in ("200", "504"):
    REQUEST_SECONDS.labels(_status)


class Bounded:
    """The first so many values of a label, or of several; later ones are ``(other)``: people can make any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[tuple[str, ...]] = set()

    def __call__(self, *values: str) -> tuple[str, ...]:
        """The values to label with."""
        if values not in self._known and len(self._known) >= self._most:
            return ("(other)",) * len(values)
        self._known.add(values)
        return values


_adapter_names = Bounded(100)
_picture_kinds = Bounded(200)


def count_pictures(*, number: int, steps: int, size: str, adapters: Collection[str]) -> None:
    """Count one request that was drawn; ``adapters``: their names."""
    PICTURES.labels(*_picture_kinds(size, "+".join(sorted(adapters)) or "(none)")).inc(number)
    STEPS.inc(number * steps)
    for name in adapters:
        ADAPTER_REQUESTS.labels(*_adapter_names(name)).inc()


def process_ended(pid: int) -> None:
    """Remove a process's gauges, and add its counts to those of all processes that ended before."""
    folder = _WithExemplars().folder
    with _locked(folder, fcntl.LOCK_EX):
        for path in folder.glob(f"gauge_*_{pid}.db"):
            path.unlink(missing_ok=True)
        for path in (folder / f"counter_{pid}.db", folder / f"histogram_{pid}.db"):
            try:
                if path.exists():
                    fold(path, path.with_stem(path.stem.replace(str(pid), _ENDED)))
            except OSError as error:  # a full disk: the file stays, and counts as before
                log_event(log, "metrics_delayed", logging.WARNING, path=str(path), reason=error.strerror)


_ENDED = "0"
"""In the place of a process's id: the counts of those that ended."""


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    """Lock the counts: shared to read them, exclusive to move them from one file to another."""
    handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def observe_request(status: int, seconds: float, trace_id: str | None) -> None:
    """Count one request that is answered; its trace becomes the exemplar of its bucket."""
    REQUESTS.labels(str(status)).inc()
    REQUEST_SECONDS.labels(str(status)).observe(seconds)
    if trace_id is not None:
        bound = next((bound for bound in _SECONDS if seconds <= bound), math.inf)
        le = floatToGoString(bound)
        _exemplars[str(status), le] = Exemplar({"trace_id": trace_id}, seconds, time.time())


_exemplars: dict[tuple[str, str], Exemplar] = {}
"""The newest by status and bucket. prometheus-client shares none between processes; this one both makes and tells them."""


def exposition(accept: str) -> tuple[bytes, str]:
    """All processes' metrics, and their content type: OpenMetrics with exemplars for those who ask for it, else text."""
    registry = CollectorRegistry()
    collector = _WithExemplars()
    registry.register(collector)
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # it fails at a version that is no number
        encode, content_type = choose_encoder("")
    with _locked(collector.folder, fcntl.LOCK_SH):
        return encode(registry), content_type


class _WithExemplars(MultiProcessCollector):
    """Adds exemplars to the buckets of requests."""

    def __init__(self) -> None:
        super().__init__(CollectorRegistry())  # type: ignore[no-untyped-call]
        self.folder = Path(self._path)

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        for metric in super().collect():  # type: ignore[no-untyped-call]
            if metric.name == "lithograph_request_seconds":
                metric.samples = [_exemplified(sample) for sample in metric.samples]
            yield metric


def _exemplified(sample: Sample) -> Sample:
    exemplar = _exemplars.get((sample.labels["status"], sample.labels.get("le", "")))
    return sample if exemplar is None else sample._replace(exemplar=exemplar)
