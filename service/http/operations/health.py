"""``/healthz``, ``/readyz``, ``/metrics`` and ``/v1/info``: for the operators of a server."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from service.http.admission import Admission, AdmissionDependency
from service.http.edge.authentication import CallerDependency
from service.observability.exposition import exposition
from service.wire.errors import ProblemBody
from service.wire.state import ServicePhase

VERSION = version("lithograph")
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "optimum-quanto", "torchao", "litserve")

STALLED = "stalled"
"""The status of a server whose engine process hangs."""

_OF_DEVICE = ("precision", "text_encoder_precision", "dtype", "offload", "slots", "rank", "rows")

router = APIRouter()


@router.get("/healthz", summary="Is the process alive?", tags=["operations"])
async def healthz() -> dict[str, str]:
    """Liveness: this process replies."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Can it generate images?",
    tags=["operations"],
    responses={503: {"description": "Not ready."}},
)
async def readyz(admission: AdmissionDependency) -> JSONResponse:
    """Readiness: the warm-up image is generated, the required adapters are there, and the engine does not hang."""
    if stall := admission.exchange.stall():
        return JSONResponse({"status": STALLED, "reason": str(stall)}, status_code=503)
    phase = admission.state.phase
    return JSONResponse({"status": phase}, status_code=200 if phase is ServicePhase.READY else 503)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    tags=["operations"],
    response_class=PlainTextResponse,
    responses={200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}}},
)
def read_metrics(request: Request) -> Response:
    """Prometheus metrics of all processes."""
    content, content_type = exposition(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


@router.get("/v1/info", summary="Model, limits, defaults, versions", tags=["model"])
async def info(admission: AdmissionDependency, caller: CallerDependency) -> dict[str, Any]:
    """The model, its limits and defaults on this server, and the versions of the software."""
    flavour, config = admission.flavour, admission.config
    settings, adapters = flavour.settings, config.adapters
    state = admission.state
    devices = [
        {"device": e.state.device, "status": STALLED if e.stall() else e.state.phase, **_of_device(e.state.model)}
        for e in admission.exchange.engines
    ]
    reason = None if config.model.flavour_reason is None else ProblemBody.of(config.model.flavour_reason).model_dump()
    return {
        "status": STALLED if admission.exchange.stall() else state.phase,
        "model": {
            "flavour": flavour.name,
            "revision": flavour.revision,
            "hash": flavour.hash,
            "reason": reason,
            **state.model,
        },
        "devices": devices,
        "limits": _limits(admission),
        "jobs": {
            "most": config.jobs.most,
            "are_lasting": config.jobs.storage is not None,
            "ttl_seconds": config.jobs.kept_seconds,
            "webhook_hosts": config.jobs.webhook_hosts,
        },
        "adapters": None
        if adapters is None
        else {
            "storage": adapters.label or adapters.uri,
            "slots": state.model.get("slots", adapters.slots),
            "max_rank": state.model.get("rank", adapters.rank),
            "required": [name for name in adapters.required if caller.sees(name)],
        },
        "defaults": {
            "width": settings.default_size_px,
            "height": settings.default_size_px,
            "steps": settings.default_steps,
            "guidance_scale": settings.default_guidance_scale,
            "cfg_renorm": settings.default_cfg_renorm,
        },
        "edits": settings.edits,
        "sizes": admission.limits.sizes,
        "reuse_tolerances": admission.limits.tolerances.model_dump(exclude={"measured"}),
        "versions": {
            "lithograph": VERSION,
            "python": platform.python_version(),
            **{library: version(library) for library in _LIBRARIES},
        },
    }


def _limits(admission: Admission) -> dict[str, Any]:
    limits, config = admission.limits, admission.config
    return {
        "max_pixels": limits.max_pixels,
        "max_steps": limits.max_steps,
        "max_images": limits.max_images,
        "max_prompt_tokens": admission.flavour.settings.max_prompt_tokens,
        "max_body_bytes": config.max_body_bytes,
        "max_image_bytes": limits.pictures.max_image_bytes,
        "max_image_pixels": limits.pictures.max_image_pixels,
        "max_queue": config.max_queue,
        "timeout_seconds": config.timeout_seconds,
    }


def _of_device(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that each device may have of its own."""
    return {name: model[name] for name in _OF_DEVICE if name in model}
