"""Every Prometheus metric of the service, in one place.

prometheus-client shares values between processes through files in ``PROMETHEUS_MULTIPROC_DIR``; whoever starts the service
sets it before this module is imported. Label values are bounded: statuses and phases, never prompts.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from service.schema import Timings

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)

REQUESTS = Counter("lithograph_requests", "Requests to POST /generate by HTTP status.", ["status"])
REQUEST_SECONDS = Histogram(
    "lithograph_request_seconds", "From a request's arrival to its reply.", ["status"], buckets=_SECONDS
)
PHASE_SECONDS = Histogram(
    "lithograph_phase_seconds", "Seconds that answered requests spent in each phase.", ["phase"], buckets=_SECONDS
)
IN_PROGRESS = Gauge("lithograph_requests_in_progress", "Requests queued or being drawn.", multiprocess_mode="livesum")
PICTURES = Counter("lithograph_pictures", "Pictures drawn.")
STEPS = Counter("lithograph_steps", "Denoising steps of answered requests, times pictures.")
READY = Gauge("lithograph_ready", "1 once a warm-up picture is drawn.", multiprocess_mode="max")
LOAD_SECONDS = Gauge("lithograph_model_load_seconds", "Loading the model and warming up.", multiprocess_mode="max")
MODEL_INFO = Gauge(
    "lithograph_model_info",
    "Always 1; its labels say what is served.",
    ["flavour", "hash", "precision", "dtype", "device", "version"],
    multiprocess_mode="max",
)


def observe_timings(timings: Timings) -> None:
    """Record one answered request's phases."""
    for phase, seconds in timings.model_dump().items():
        PHASE_SECONDS.labels(phase.removesuffix("_seconds")).observe(seconds)


def exposition() -> bytes:
    """All processes' metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
