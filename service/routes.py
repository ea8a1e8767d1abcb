"""The HTTP routes, in the HTTP process: check, order, answer. No torch, no LitServe.

A request to draw goes ``parse -> admission -> exchange -> engine process`` and comes back as files, as JSON or as
server-sent events. Whoever goes away, or runs out of time, is cancelled at the engine's next step. Each family of endpoints
has a file of its own; here are those for whoever operates the server.
"""

import platform
from collections.abc import Callable, MutableMapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from longcat.flavour import Flavour
from longcat.prompt import Tokenize
from service import metrics
from service.adapters import AdapterRoutes
from service.admission import Admission
from service.config import ServiceConfig
from service.exchange import Exchange
from service.generate import GenerateRoute
from service.jobs import Jobs
from service.limits import Limits
from service.openai import OpenAIRoutes
from service.vllm import VllmRoutes

VERSION = version("lithograph")
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "optimum-quanto", "torchao", "litserve")


class Routes:
    """All endpoints, over one exchange with the engine process."""

    def __init__(
        self, config: ServiceConfig, flavour: Flavour, limits: Limits, tokenize: Tokenize, exchange: Exchange
    ) -> None:
        self._admission = Admission(config, flavour, limits, tokenize, exchange)
        self._jobs = Jobs(self._admission, config.jobs)
        self._adapters = AdapterRoutes(self._admission)

    def share(self, state: MutableMapping[str, Any]) -> None:
        """Look there for ``phase``, and what is loaded."""
        self._admission.state = state

    def add_to(self, app: FastAPI) -> None:
        """Register everything but ``POST /generate``."""

        def add(path: str, endpoint: Callable[..., Any], summary: str, tag: str, **options: Any) -> None:
            name = endpoint.__name__.strip("_")
            app.add_api_route(path, endpoint, methods=["GET"], name=name, summary=summary, tags=[tag], **options)

        not_ready = {503: {"description": "not ready"}}
        add("/healthz", self._healthz, "Is the process alive?", "operations")
        add("/readyz", self._readyz, "Can it draw?", "operations", responses=not_ready)
        add("/metrics", self._metrics, "Prometheus metrics", "operations")
        add("/v1/info", self._info, "Model, limits, defaults, versions", "model")
        self._jobs.add_to(app)
        self._adapters.add_to(app)
        OpenAIRoutes(self._admission, self._adapters).add_to(app)
        VllmRoutes(self._admission, self._adapters).add_to(app)

    def add_generate(self, app: FastAPI) -> None:
        """Register ``POST /generate``."""
        GenerateRoute(self._admission, self._jobs).add_to(app)

    async def _healthz(self) -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    async def _readyz(self) -> JSONResponse:
        """Whether a warm-up picture is drawn, required adapters are there, and requests are answered."""
        phase = self._admission.state["phase"]
        return JSONResponse({"status": phase}, status_code=200 if phase == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        """Prometheus metrics of all processes."""
        content, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    async def _info(self) -> dict[str, Any]:
        """What is served, with which limits, by which versions."""
        flavour, limits = self._admission.flavour, self._admission.limits
        config, settings = self._admission.config, flavour.settings
        adapters = config.adapters
        state = dict(self._admission.state)
        return {
            "status": state.pop("phase"),
            "model": {"flavour": flavour.name, "revision": flavour.revision, "hash": flavour.hash, **state},
            "limits": {
                "max_pixels": limits.max_pixels,
                "max_steps": limits.max_steps,
                "max_images": limits.max_images,
                "max_prompt_tokens": settings.max_prompt_tokens,
                "max_body_bytes": config.max_body_bytes,
                "max_queue": config.max_queue,
                "timeout_seconds": config.timeout_seconds,
            },
            "jobs": {
                "most": config.jobs.most,
                "ttl_seconds": config.jobs.ttl_seconds,
                "webhook_hosts": config.jobs.webhook_hosts,
            },
            "adapters": None
            if adapters is None
            else {
                "storage": adapters.uri,
                "slots": adapters.slots,
                "max_rank": adapters.rank,
                "required": adapters.required,
            },
            "defaults": {
                "width": settings.default_size_px,
                "height": settings.default_size_px,
                "steps": settings.default_steps,
                "guidance_scale": settings.default_guidance_scale,
            },
            "versions": {
                "lithograph": VERSION,
                "python": platform.python_version(),
                **{library: version(library) for library in _LIBRARIES},
            },
        }
