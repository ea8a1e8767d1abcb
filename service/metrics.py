"""Every Prometheus metric of the service, in one place.

prometheus-client shares values between processes through files in ``PROMETHEUS_MULTIPROC_DIR``; whoever starts the service
sets it before this module is imported. Label values are bounded: statuses and phases, never prompts.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.schema import Timings

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)

REQUESTS = Counter(
    "lithograph_requests", "Requests to POST /generate and /v1/images/generations by HTTP status.", ["status"]
)
REQUEST_SECONDS = Histogram(
    "lithograph_request_seconds", "From a request's arrival to its reply.", ["status"], buckets=_SECONDS
)
PHASE_SECONDS = Histogram(
    "lithograph_phase_seconds", "Seconds that answered requests spent in each phase.", ["phase"], buckets=_SECONDS
)
IN_PROGRESS = Gauge("lithograph_requests_in_progress", "Requests queued or being drawn.", multiprocess_mode="livesum")
PICTURES = Counter("lithograph_pictures", "Pictures drawn.")
STEPS = Counter("lithograph_steps", "Denoising steps of answered requests, times pictures.")
READY = Gauge(
    "lithograph_ready",
    "1 once a warm-up picture is drawn and required adapters are loaded.",
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
JOBS = Counter("lithograph_jobs", "Asynchronous jobs that are over, by how they ended.", ["status"])
WEBHOOKS = Counter("lithograph_webhooks", "Webhooks that were sent, by whether they arrived in the end.", ["result"])
CANCELLED = Counter("lithograph_cancelled_requests", "Requests whose client went away.")
ENGINE_RESTARTS = Counter("lithograph_engine_restarts", "Times that the engine process ended and was started again.")
ADAPTER_REQUESTS = Counter(
    "lithograph_adapter_requests",
    "Answered requests by adapter; names beyond the first hundred are counted as (other).",
    ["adapter"],
)
ADAPTER_LOAD_SECONDS = Histogram(
    "lithograph_adapter_load_seconds", "Downloading, verifying and reading one version.", buckets=_SECONDS
)
ADAPTER_REFUSALS = Counter(
    "lithograph_adapter_refusals", "Versions that were not served: unfit, or incomplete in storage.", ["reason"]
)
ADAPTER_STORAGE_REACHABLE = Gauge(
    "lithograph_adapter_storage_reachable", "1 if the last look at storage worked.", multiprocess_mode="livemostrecent"
)
SLOTS = Gauge("lithograph_adapter_slots", "Slots for adapters.", multiprocess_mode="livemostrecent")
SLOTS_USED = Gauge("lithograph_adapter_slots_used", "Slots that hold an adapter.", multiprocess_mode="livemostrecent")
SLOT_LOADS = Counter("lithograph_adapter_slot_loads", "Adapters copied into a slot.")
SLOT_EVICTIONS = Counter("lithograph_adapter_slot_evictions", "Adapters that made room for another in their slot.")
PROMPT_CACHE = Counter(
    "lithograph_prompt_cache", "Prompt embeddings looked up, by whether they were there.", ["result"]
)
MODEL_INFO = Gauge(
    "lithograph_model_info",
    "Always 1; its labels say what is served.",
    ["flavour", "hash", "precision", "dtype", "device", "version"],
    multiprocess_mode="max",
)


_MOST_ADAPTER_NAMES = 100
_adapter_names: set[str] = set()


def observe_timings(timings: Timings) -> None:
    """Record one answered request's phases."""
    for phase, seconds in timings.model_dump().items():
        PHASE_SECONDS.labels(phase.removesuffix("_seconds")).observe(seconds)


def count_adapters(references: Iterable[str]) -> None:
    """Count one answered request's adapters (``name@version``) by name."""
    for reference in references:
        name = reference.partition("@")[0]
        if name not in _adapter_names and len(_adapter_names) >= _MOST_ADAPTER_NAMES:
            name = "(other)"
        _adapter_names.add(name)
        ADAPTER_REQUESTS.labels(name).inc()


def process_ended(pid: int) -> None:
    """Forget a process's gauges; its counts stay."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]


def exposition() -> bytes:
    """All processes' metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
