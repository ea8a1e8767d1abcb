"""Every Prometheus metric of the service, in one place.

prometheus-client shares values between processes through files in ``PROMETHEUS_MULTIPROC_DIR``; ``service.run_folder`` sets
it before this module is imported. Label values are bounded: statuses and phases, never prompts.
"""

import math
import time
from collections.abc import Collection

from prometheus_client import Counter, Gauge, Histogram, values
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from service.observability.values_file import ValuesFile
from service.wire.editing.fields import KINDS
from service.wire.messages import DeviceUsage

vars(values).update(MmapedDict=ValuesFile)  # prometheus-client's own ends the process if the disk is full

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)

REQUESTS = Counter(
    "lithograph_requests", "Requests to POST /generate and /v1/images/generations by HTTP status.", ["status"]
)
REQUEST_SECONDS = Histogram(
    "lithograph_request_seconds", "From a request's arrival to its reply.", ["status"], buckets=_SECONDS
)
PHASE_SECONDS = Histogram(
    "lithograph_phase_seconds",
    "Time that requests spent in each phase (queue, text, denoise, decode, encode), by outcome.",
    ["phase", "outcome"],
    buckets=_SECONDS,
)
IN_PROGRESS = Gauge(
    "lithograph_requests_in_progress", "Requests queued or being generated.", multiprocess_mode="livesum"
)
PICTURES = Counter(
    "lithograph_pictures",
    "Pictures generated, by size in px and adapters; pairs beyond the first two hundred are (other).",
    ["size", "adapter"],
)
PICTURES_BY_KIND = Counter(
    "lithograph_pictures_by_kind",
    "Pictures generated, by what they started from: text_to_image, img2img, inpaint or outpaint.",
    ["kind"],
)
STEPS = Counter("lithograph_steps", "Denoising steps of generated pictures.")
ENGINES = Gauge("lithograph_engines", "Engines of the server, one for each device.", multiprocess_mode="max")
READY = Gauge(
    "lithograph_ready",
    "1 once a warm-up picture is generated and required adapters are loaded, by device.",
    ["device"],
    multiprocess_mode="livemax",
)
HEARTBEAT = Gauge(
    "lithograph_engine_heartbeat_timestamp_seconds",
    "Time at which the engine's step loop last made a step or idled, by the HTTP process's clock.",
    ["device"],
    multiprocess_mode="livemax",
)
LOAD_SECONDS = Gauge(
    "lithograph_model_load_seconds", "Time of loading the model and warming up.", ["device"], multiprocess_mode="max"
)
QUEUED = Gauge(
    "lithograph_queued_requests", "Requests waiting for rows or slots.", ["device"], multiprocess_mode="livemostrecent"
)
ACTIVE_ROWS = Gauge(
    "lithograph_active_rows",
    "Rows being denoised; with guidance, a picture has two.",
    ["device"],
    multiprocess_mode="livemostrecent",
)
PARKED = Gauge(
    "lithograph_parked_pictures",
    "Pictures that were taken out of the steps for ones of high priority, and wait to continue.",
    ["device"],
    multiprocess_mode="livemostrecent",
)
PARKINGS = Counter("lithograph_parkings", "Times that a picture was parked for one of high priority.", ["device"])
ROWS = Counter("lithograph_rows", "Rows of steps: computed, or reused at qualities below exact.", ["device", "kind"])
STEP_SECONDS = Histogram(
    "lithograph_step_seconds", "Time of one forward of pictures of one size.", ["device"], buckets=_SECONDS
)
KEY_PICTURES = Counter(
    "lithograph_key_pictures", "Pictures by API key; keys beyond the first hundred are counted as (other).", ["key"]
)
KEY_PIXEL_STEPS = Counter(
    "lithograph_key_pixel_steps", "Width x height x steps made by API key, twice with guidance.", ["key"]
)
KEY_DEVICE_SECONDS = Counter(
    "lithograph_key_device_seconds",
    "Time of the device by API key: of steps by rows, of prompts and of decoding.",
    ["key"],
)
JOBS = Counter("lithograph_jobs", "Finished asynchronous jobs, by the HTTP status of their result.", ["status"])
WEBHOOKS = Counter(
    "lithograph_webhooks", "Webhooks: delivered, given up, or postponed to another round of attempts.", ["result"]
)
JOBS_IN_PROGRESS = Gauge(
    "lithograph_jobs_in_progress",
    "Asynchronous jobs that this server works on, until their webhook is delivered.",
    multiprocess_mode="livesum",
)
JOBS_OPEN = Gauge(
    "lithograph_jobs_open",
    "Jobs in the storage of jobs on which work is left, whichever server does it.",
    multiprocess_mode="livemostrecent",
)
JOBS_ABANDONED = Gauge(
    "lithograph_jobs_abandoned",
    "Jobs in the storage of jobs whose server has ended, and that no other has taken up.",
    multiprocess_mode="livemostrecent",
)
JOBS_EXPIRED = Counter(
    "lithograph_jobs_expired", "Jobs that this server has removed from the storage of jobs after their time."
)
JOBS_TAKEN = Counter(
    "lithograph_jobs_taken", "Jobs of other replicas, or of an earlier start, that this server has taken up."
)
BATCHES = Counter("lithograph_batches", "Batches that this server has ended, by their status.", ["status"])
BATCH_LINES = Counter("lithograph_batch_lines", "Lines of batches with a result: completed or failed.", ["result"])
BATCHES_HELD = Gauge(
    "lithograph_batches_in_progress", "Batches that this server works on.", multiprocess_mode="livesum"
)
JOB_STORAGE_ERRORS = Counter(
    "lithograph_job_storage_errors", "Failed calls to the storage of jobs and batches, by kind.", ["call"]
)
REJECTED = Counter(
    "lithograph_rejected_requests", "Requests rejected before the engine, by the error's code.", ["reason"]
)
KEY_REFUSALS = Counter(
    "lithograph_api_key_refusals",
    "Requests refused for their API key: missing, unknown, without the role, adapter or priority, or at a limit.",
    ["reason"],
)
API_KEYS_CURRENT = Gauge(
    "lithograph_api_keys_current",
    "1 while the keys in use are those of the file; 0 if its last change could not be read.",
    multiprocess_mode="livemostrecent",
)
CANCELLED = Counter("lithograph_cancelled_requests", "Requests whose client disconnected.")
ENGINE_RESTARTS = Counter("lithograph_engine_restarts", "Restarts of an engine process.", ["device"])
DEVICE_LOSSES = Counter(
    "lithograph_device_losses",
    "Errors of the device after which no operation succeeds; the engine process ends.",
    ["device"],
)
OUT_OF_MEMORY = Counter(
    "lithograph_out_of_memory",
    "Forwards that ran out of device memory and were repeated with half the rows.",
    ["device"],
)
ADAPTER_REQUESTS = Counter(
    "lithograph_adapter_requests",
    "Answered requests by adapter; names beyond the first hundred are counted as (other).",
    ["adapter"],
)
ADAPTER_LOAD_SECONDS = Histogram(
    "lithograph_adapter_load_seconds", "Time of downloading, verifying and reading one version.", buckets=_SECONDS
)
ADAPTER_REFUSALS = Counter(
    "lithograph_adapter_refusals",
    "Versions that were not served: invalid, incomplete in storage, or unreadable.",
    ["reason"],
)
ADAPTER_STORAGE_REACHABLE = Gauge(
    "lithograph_adapter_storage_reachable",
    "1 if the last poll of storage succeeded.",
    multiprocess_mode="livemostrecent",
)
SLOTS = Gauge("lithograph_adapter_slots", "Slots for adapters.", ["device"], multiprocess_mode="livemostrecent")
SLOTS_USED = Gauge(
    "lithograph_adapter_slots_used", "Slots that hold an adapter.", ["device"], multiprocess_mode="livemostrecent"
)
SLOT_LOADS = Counter("lithograph_adapter_slot_loads", "Adapters copied into a slot.")
SLOT_EVICTIONS = Counter("lithograph_adapter_slot_evictions", "Adapters evicted from their slot.")
ADAPTER_CACHE = Counter(
    "lithograph_adapter_cache", "Adapters of requests, by the cache that had them: memory, disk or storage.", ["result"]
)
DEVICE_MEMORY = Gauge(
    "lithograph_device_memory_bytes",
    "Device memory used by tensors (on a CPU: by the engine process), reserved by torch, at the peak, and in all.",
    ["device", "kind"],
    multiprocess_mode="livemostrecent",
)
PROMPT_CACHE = Counter(
    "lithograph_prompt_cache", "Lookups of prompt embeddings: in memory, on disk, or a miss.", ["result"]
)
SOURCE_CACHE = Counter(
    "lithograph_source_cache",
    "Lookups of the latents of pictures that requests give: in memory, or a miss.",
    ["result"],
)
MODEL_INFO = Gauge(
    "lithograph_model_info",
    "Always 1; its labels name the model and versions.",
    ["flavour", "hash", "precision", "dtype", "device", "version"],
    multiprocess_mode="max",
)


# From the start: a series that began with 1 would hide its first count from rate() and increase(), and so from alerts.
for _counter, _values in {
    REQUESTS: ("200", "202", "400", "404", "413", "422", "429", "499", "500", "503", "504"),
    REJECTED: ("busy", "not_ready", "draining", "invalid_request", "not_json", "body_too_large"),
    KEY_REFUSALS: ("missing", "unknown", "role", "adapter", "priority", "requests", "pixel_steps"),
    JOBS: ("200", "404", "499", "500", "503", "504"),
    WEBHOOKS: ("delivered", "given_up", "postponed"),
    BATCHES: ("completed", "failed", "expired", "cancelled"),
    BATCH_LINES: ("completed", "failed"),
    JOB_STORAGE_ERRORS: ("read", "download", "create", "replace", "delete", "list"),
    ADAPTER_REFUSALS: ("unfit", "incomplete", "unreadable"),
    ADAPTER_CACHE: ("memory", "disk", "storage"),
    PROMPT_CACHE: ("memory", "disk", "miss"),
    SOURCE_CACHE: ("memory", "miss"),
    PICTURES_BY_KIND: KINDS,
}.items():
    for _value in _values:
        _counter.labels(_value)
for _status in ("200", "504"):
    REQUEST_SECONDS.labels(_status)


def begin_engine(device: str) -> None:
    """Show that the engine of a device is ready; its counters begin with 0."""
    READY.labels(device).set(1)
    for series in (ENGINE_RESTARTS, DEVICE_LOSSES, OUT_OF_MEMORY, PARKINGS, STEP_SECONDS):
        series.labels(device)


class Bounded:
    """A bound on label values: further values become ``(other)``, because clients can send any number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[tuple[str, ...]] = set()

    def __call__(self, *values: str) -> tuple[str, ...]:
        """Return the values to use as labels."""
        if values not in self._known and len(self._known) >= self._most:
            return ("(other)",) * len(values)
        self._known.add(values)
        return values


_adapter_names = Bounded(100)
_keys = Bounded(100)
_picture_kinds = Bounded(200)


def count_pictures(*, number: int, steps: int, size: str, kind: str, adapters: Collection[str]) -> None:
    """Count the pictures of one request; ``adapters``: their names."""
    PICTURES_BY_KIND.labels(kind).inc(number)
    PICTURES.labels(*_picture_kinds(size, "+".join(sorted(adapters)) or "(none)")).inc(number)
    STEPS.inc(number * steps)
    for name in adapters:
        ADAPTER_REQUESTS.labels(*_adapter_names(name)).inc()


def count_usage(key: str | None, usage: DeviceUsage) -> None:
    """Count what one request of a key has used."""
    labels = _keys(key or "(none)")
    KEY_PICTURES.labels(*labels).inc(usage.pictures)
    KEY_PIXEL_STEPS.labels(*labels).inc(usage.pixel_steps)
    KEY_DEVICE_SECONDS.labels(*labels).inc(usage.device_seconds)


def observe_request(status: int, seconds: float, trace_id: str | None) -> None:
    """Count one answered request; its trace becomes the exemplar of its bucket."""
    REQUESTS.labels(str(status)).inc()
    REQUEST_SECONDS.labels(str(status)).observe(seconds)
    if trace_id is not None:
        bound = next((bound for bound in _SECONDS if seconds <= bound), math.inf)
        le = floatToGoString(bound)
        EXEMPLARS[str(status), le] = Exemplar({"trace_id": trace_id}, seconds, time.time())


EXEMPLARS: dict[tuple[str, str], Exemplar] = {}
"""The newest exemplars by status and bucket, in the HTTP process: prometheus-client shares none between processes."""
