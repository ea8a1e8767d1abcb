"""The non-public members of LitServe that ``service.process.server`` overrides or uses, each with its reason.

LitServe promises nothing about them, so its version is pinned exactly. ``tests/service/process/test_litserve_members.py``
fails by the member's name when a new version lacks one, and when the server uses one that is not listed here. This module
does not import LitServe.
"""

from collections.abc import Mapping
from types import MappingProxyType

OVERRIDDEN: Mapping[str, str] = MappingProxyType(
    {
        "verify_worker_status": "LitServe starts HTTP once a worker is up; here HTTP answers 503 while the model loads",
        "lifespan": "the one method that runs in the HTTP process: it has to end with the main process",
        "_init_manager": "LitServe's manager process outlives the main process, and ignores SIGTERM",
        "_perform_graceful_shutdown": "LitServe also calls it when the manager process ends: that is a failure, exit code 1",
        "_register_middleware": "LitServe's middleware would compress pictures with gzip",
        "_register_internal_endpoints": "the operators' endpoints are ours: /healthz, /readyz, /metrics, /v1/info",
        "_register_api_endpoints": "POST /generate is ours: LitServe's has no validation, cancellation or events",
        "launch_inference_worker": "engine processes start after the HTTP process, and each in a thread of its own",
        "launch_single_inference_worker": "LitServe always spawns, which repeats all imports: most of a restart's time",
        "_start_server": "uvicorn listens in the HTTP process, where a taken port is no error",
        "_start_worker_monitoring": "LitServe's restarts workers without a limit and without replies to their requests",
    }
)
"""Reason by method of ``LitServer``."""

READ: Mapping[str, str] = MappingProxyType(
    {
        "workers_setup_status": "set with the manager process: LitServe's workers write it",
        "_shutdown_event": "set with the manager process: LitServe waits for it",
        "response_buffer": "replaced by the exchange's mailboxes, so that asynchronous jobs outlive an HTTP handler",
        "_transport": "set with the manager process; tells the HTTP process that an engine process ended",
        "inference_workers": "the engine processes, which LitServe ends at a shutdown",
        "_callback_runner": "an argument of LitServe's engine process",
        "restart_workers": "an argument of LitServe's engine process",
        "uvicorn_graceful_timeout": "shortened once waiting for connections is useless: their requests cannot finish",
    }
)
"""Reason by attribute of a ``LitServer``."""
