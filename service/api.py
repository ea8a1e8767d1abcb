"""The LitServe surface: the processes, the routes, the replies. Nothing else imports litserve.

LitServe's main process forks the HTTP process and spawns the engine process, which loads the model beside the running HTTP
server: ``/healthz`` answers at once, ``/readyz`` once a warm-up picture is drawn. A request goes
``parse -> resolve -> queue -> Engine.draw -> encode`` and comes back as files.
"""

import logging
import multiprocessing.connection
import os
import platform
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastapi_offline
import litserve
from fastapi import Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from litserve.loops.base import LitLoop
from litserve.server import RegularRequestHandler
from litserve.utils import LitAPIStatus, LoopResponseType
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from longcat.errors import UserError
from longcat.flavour import Flavour
from longcat.logs import set_up_logging, silence_import_noise
from longcat.prompt import Tokenize
from longcat.tokenizer import load_tokenizer, plain_ids
from service import metrics
from service.config import ServiceConfig
from service.picture import ModelIdentity, Rendered
from service.replies import RESPONSES, error_reply, phases, pictures_as_files, pictures_as_json, reply_to_error
from service.schema import BodyTooLargeError, GenerateRequest, Limits, ResolvedRequest, parse_request

if TYPE_CHECKING:
    from service.renderer import Renderer

log = logging.getLogger("lithograph")

VERSION = version("lithograph")
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "optimum-quanto", "torchao", "litserve")


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The engine's reply to a request that it could not draw."""

    status: int
    code: str
    message: str


class EngineLoop(LitLoop):  # type: ignore[misc]  # litserve has no types
    """The engine process: load, warm up, then draw one request after the other."""

    def __call__(
        self,
        lit_api: "GenerateAPI",
        device: str,  # noqa: ARG002 - ours is in the configuration
        worker_id: int,  # noqa: ARG002
        request_queue: Any,
        transport: Any,
        *_: object,
    ) -> None:
        """LitServe's entry point, in the spawned process."""
        # Ctrl-C reaches the whole group, but it is the main process that ends this one, with SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _exit)
        renderer = lit_api.load()
        while True:
            response_queue_id, uid, submitted, request = request_queue.get()
            reply = _reply(renderer, request, queue_seconds=time.monotonic() - submitted)
            self.put_response(transport, response_queue_id, uid, reply, LitAPIStatus.OK, LoopResponseType.REGULAR)


def _reply(renderer: "Renderer", request: ResolvedRequest, *, queue_seconds: float) -> Rendered | Failed:
    try:
        rendered = renderer.render(request)
    except UserError as error:
        return Failed(status=422, code="invalid_request", message=str(error))
    except Exception as error:  # one request fails alone, whatever happened to it
        log.exception("drawing failed: %s", request)
        return Failed(status=500, code="engine_error", message=f"{type(error).__name__}: {error}")
    return replace(rendered, timings=rendered.timings.model_copy(update={"queue_seconds": queue_seconds}))


class GenerateAPI(litserve.LitAPI):  # type: ignore[misc]  # litserve has no types
    """What LitServe ships to the engine process: the configuration, and where to say how far it is."""

    def __init__(self, config: ServiceConfig, flavour: Flavour, limits: Limits) -> None:
        super().__init__(api_path="/generate", loop=EngineLoop())
        self.config = config
        self.flavour = flavour
        self.limits = limits
        self.state: Any = None
        """A dictionary shared by all processes: ``phase`` (loading, warming up, ready, failed) and what is loaded."""

    def setup(self, device: str) -> None:
        """Nothing: the loop loads the model, so that HTTP answers meanwhile."""

    def predict(self, x: object) -> object:
        """LitServe wants one; the loop draws."""
        raise AssertionError(f"the engine loop draws, not LitServe's: {x!r}")

    def load(self) -> "Renderer":
        """Load the model and draw a warm-up picture. Runs in the engine process, and ends it if that fails."""
        try:
            set_up_logging()
            silence_import_noise()
            from service.renderer import Renderer  # here, so that the HTTP processes never import torch

            begin = time.monotonic()
            renderer = Renderer(self.config.model, self.flavour, max_rows=self.config.max_rows)
            self.state.update(phase="warming up", device=str(renderer.model.device), **renderer.identity.model_dump())
            warm_up = self.limits.resolve(
                GenerateRequest(prompt="warm-up", steps=1), plain_ids(renderer.model.tokenizer)
            )
            renderer.render(warm_up)
            seconds = time.monotonic() - begin
        except UserError as error:
            log.error("cannot serve: %s", error)
        except Exception:
            log.exception("cannot serve: loading failed")
        else:
            self._announce(renderer.identity, str(renderer.model.device), seconds)
            return renderer
        self.state.update(phase="failed")
        sys.exit(1)

    def _announce(self, identity: ModelIdentity, device: str, seconds: float) -> None:
        shown = identity.model_dump(include={"flavour", "hash", "precision", "dtype"})
        metrics.MODEL_INFO.labels(**shown, device=device, version=VERSION).set(1)
        metrics.LOAD_SECONDS.set(seconds)
        metrics.READY.set(1)
        self.state.update(phase="ready")
        log.info(
            "ready after %.1f s: %s %s, precision %s, %s on %s, http://%s:%d",
            seconds,
            identity.flavour,
            identity.hash[:12],
            identity.precision,
            identity.dtype,
            device,
            self.config.host,
            self.config.port,
        )


class Server(litserve.LitServer):  # type: ignore[misc]  # litserve has no types
    """LitServe with our routes, error bodies and shutdown."""

    def __init__(self, api: GenerateAPI) -> None:
        self._api = api
        self._tokenize: Tokenize = plain_ids(load_tokenizer(api.flavour.folder))
        self._has_failed = self._is_stopping = False
        super().__init__(api, accelerator="cpu", devices=1, timeout=False)
        self.app.title = "Lithograph"
        self.app.version = VERSION
        self.app.description = "Pictures from Chinese and English prompts with LongCat-Image."
        self._serve_docs_offline()
        for kind in (HTTPException, Exception):
            self.app.add_exception_handler(kind, _on_error)

    def serve(self) -> int:
        """Serve until SIGTERM, Ctrl-C or the end of one of our processes; return the exit code."""
        main = os.getpid()

        def interrupt(*_: object) -> None:
            # The forked HTTP process inherits this handler; uvicorn has its own, and raises the signal again when done.
            if os.getpid() == main and not self._is_stopping:
                self._is_stopping = True
                raise KeyboardInterrupt

        # On SIGTERM, LitServe itself would die and leave its processes behind.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, interrupt)
        config = self._api.config
        _check_port_is_free(config.host, config.port)
        log.info(
            "starting %s %s, precision %s, text encoder %s, device %s, http://%s:%d",
            self._api.flavour.name,
            self._api.flavour.hash[:12],
            config.model.precision,
            config.model.text_encoder_precision,
            config.model.device,
            config.host,
            config.port,
        )
        try:
            self.run(
                host=config.host, port=config.port, num_api_servers=1, log_level="warning", generate_client_file=False
            )
        except KeyboardInterrupt:  # before LitServe was up: it looks after its processes only from then on
            for worker in getattr(self, "inference_workers", ()):
                worker.terminate()
        except (EOFError, ConnectionError):  # LitServe waits on the manager process, and that is gone
            self._fail("manager")
        return 1 if self._has_failed else 0

    def verify_worker_status(self) -> None:
        """LitServe would start HTTP only once the engine process is up; here it answers, not ready, from the start."""

    def _serve_docs_offline(self) -> None:
        """Swagger UI from files that ship with us: FastAPI's own page loads it from a CDN, which a cluster may not reach."""
        routes = self.app.router.routes
        routes[:] = [route for route in routes if getattr(route, "path", None) not in ("/docs", "/redoc")]
        assets = Path(fastapi_offline.__file__).parent / "static"
        self.app.mount("/docs-assets", StaticFiles(directory=assets), name="docs-assets")
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Lithograph",
            swagger_js_url="docs-assets/swagger-ui-bundle.js",
            swagger_css_url="docs-assets/swagger-ui.css",
            swagger_favicon_url="docs-assets/favicon.png",
        )
        self.app.add_api_route("/docs", lambda: page, include_in_schema=False)
        self.app.add_api_route("/", lambda: RedirectResponse("docs"), include_in_schema=False)

    def _init_manager(self, num_api_servers: int) -> Any:
        manager = super()._init_manager(num_api_servers)
        self._api.state = manager.dict(phase="loading")
        self._manager_process = manager._process  # it holds the queues: without it, nothing moves
        return manager

    def _perform_graceful_shutdown(self, *arguments: Any) -> None:
        if not self._is_stopping:  # nobody asked: LitServe stops by itself when the manager process is gone
            self._is_stopping = True
            self._fail("manager")
        super()._perform_graceful_shutdown(*arguments)

    def _fail(self, process: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self.uvicorn_graceful_timeout = 1  # requests that wait for a dead process would be waited for
            log.error("the %s process ended; stopping", process)

    def _register_middleware(self) -> None:
        """None of LitServe's: it would gzip pictures."""

    def _register_internal_endpoints(self) -> None:
        self.app.openapi_tags = [{"name": "model"}, {"name": "operations"}]
        not_ready = {503: {"description": "not ready"}}
        self._get("/healthz", self._healthz, "Is the process alive?", "operations")
        self._get("/readyz", self._readyz, "Is a warm-up picture drawn?", "operations", responses=not_ready)
        self._get("/metrics", self._metrics, "Prometheus metrics", "operations")
        self._get("/v1/info", self._info, "Model, limits, defaults, versions", "model")

    def _get(self, path: str, endpoint: Callable[..., Any], summary: str, tag: str, **options: Any) -> None:
        name = path.strip("/").replace("/", "_")
        self.app.add_api_route(path, endpoint, methods=["GET"], name=name, summary=summary, tags=[tag], **options)

    def _register_api_endpoints(self, lit_api: GenerateAPI, *_: object) -> None:
        self._handler = RegularRequestHandler(lit_api, self)
        self.app.add_api_route(
            "/generate",
            self._generate,
            methods=["POST"],
            name="generate",
            tags=["model"],
            summary="Draw pictures",
            response_class=Response,
            responses=RESPONSES,
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": GenerateRequest.model_json_schema()}},
                }
            },
        )

    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: dict[int, Any]) -> None:  # noqa: ARG002
        """Stop the server when one of its processes is gone, instead of answering nothing."""
        processes = {
            "engine": self.inference_workers,
            "HTTP": list(uvicorn_workers.values()),
            "manager": [self._manager_process],
        }

        def watch() -> None:
            # Not join(): two threads that wait for one child race for its exit status, and the loser thinks it alive.
            sentinels = {p.sentinel: name for name, group in processes.items() for p in group}
            ended = multiprocessing.connection.wait(list(sentinels))
            if self._is_stopping:
                return
            self._fail(sentinels[ended[0]])
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, daemon=True, name="process-watch").start()

    async def _generate(self, request: Request) -> Response:
        begin = time.monotonic()
        with metrics.IN_PROGRESS.track_inprogress():
            try:
                response = await self._answer(parse_request(await self._read_body(request)))
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it; nginx counts such requests under this number
            except Exception as error:
                response = reply_to_error(error)
        metrics.REQUESTS.labels(str(response.status_code)).inc()
        metrics.REQUEST_SECONDS.labels(str(response.status_code)).observe(time.monotonic() - begin)
        return response

    async def _read_body(self, request: Request) -> bytes:
        limit = self._api.config.max_body_bytes
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise BodyTooLargeError(f"the body is over {limit} bytes; send a shorter prompt")
        return bytes(body)

    async def _answer(self, request: GenerateRequest) -> Response:
        if self._api.state["phase"] != "ready":
            message = "the model is still loading; try again when /readyz says ready"
            return error_reply(503, "not_ready", message, retry_after=5)
        resolved = self._api.limits.resolve(request, self._tokenize)
        request_id = str(uuid.uuid4())
        reply: Rendered | Failed = await self._handler.handle_request(resolved, ResolvedRequest)
        if isinstance(reply, Failed):
            log.error("request %s failed: %s", request_id, reply.message)
            return error_reply(reply.status, reply.code, reply.message)
        metrics.observe_timings(reply.timings)
        metrics.PICTURES.inc(resolved.num_images)
        metrics.STEPS.inc(resolved.steps * resolved.num_images)
        seconds = phases(reply.timings)
        log.info(
            "request %s %dx%d steps %d images %d seed %d: %s",
            request_id,
            resolved.width,
            resolved.height,
            resolved.steps,
            resolved.num_images,
            resolved.seed,
            ", ".join(f"{phase} {value * 1000:.0f} ms" for phase, value in seconds.items()),
        )
        headers = {
            "X-Request-Id": request_id,
            "X-Seed": str(resolved.seed),
            "X-Model-Hash": self._api.flavour.hash,
            "Server-Timing": ", ".join(f"{phase};dur={value * 1000:.1f}" for phase, value in seconds.items()),
        }
        if request.response_format == "json":
            return pictures_as_json(request_id, self._api.flavour.hash, resolved, reply, headers)
        return pictures_as_files(resolved, reply, headers)

    async def _healthz(self) -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    async def _readyz(self) -> JSONResponse:
        """Whether a warm-up picture is drawn and requests are answered."""
        phase = self._api.state["phase"]
        return JSONResponse({"status": phase}, status_code=200 if phase == "ready" else 503)

    async def _metrics(self) -> Response:
        """Prometheus metrics of all processes."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def _info(self) -> dict[str, Any]:
        """What is served, with which limits, by which versions."""
        api, settings = self._api, self._api.flavour.settings
        state = dict(self._api.state)
        return {
            "status": state.pop("phase"),
            "model": {
                "flavour": api.flavour.name,
                "revision": api.flavour.revision,
                "hash": api.flavour.hash,
                **state,
            },
            "limits": {
                "max_pixels": api.limits.max_pixels,
                "max_steps": api.limits.max_steps,
                "max_images": api.limits.max_images,
                "max_prompt_tokens": settings.max_prompt_tokens,
                "max_body_bytes": api.config.max_body_bytes,
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


def _check_port_is_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as uvicorn does: lingering connections are no hindrance
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} on {host} cannot be had ({error.strerror}); give another with --port"
            ) from error


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    return reply_to_error(error)


def _exit(*_: object) -> None:
    """End the process, running its exit handlers."""
    sys.exit(0)
