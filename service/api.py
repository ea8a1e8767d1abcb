"""The LitServe surface: the processes and how they start, drain, restart and end. Nothing else imports litserve.

LitServe's main process forks the HTTP process and spawns the engine process (``service.engine_process``), which loads the
model beside the running HTTP server: ``/healthz`` answers at once, ``/readyz`` once a warm-up picture is drawn.
"""

import logging
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections import deque
from typing import Any

import litserve
from fastapi import Request
from fastapi.responses import JSONResponse
from litserve.loops.base import LitLoop
from litserve.utils import LitAPIStatus, LoopResponseType
from starlette.exceptions import HTTPException

from longcat.errors import UserError
from longcat.flavour import Flavour
from longcat.tokenizer import load_tokenizer, plain_ids
from service import metrics
from service.config import ServiceConfig
from service.connection_close import ConnectionClose
from service.docs_page import serve_docs
from service.engine_process import EngineProcess
from service.exchange import ENGINE, Exchange
from service.limits import Limits
from service.messages import Cancel, RefusedError, Reply
from service.replies import reply_to_error, reply_to_http_error
from service.routes import VERSION, Routes
from service.tracing import TracedRequests

log = logging.getLogger("lithograph")

_MOST_RESTARTS = 3
_RESTART_WINDOW_SECONDS = 300.0
"""An engine that dies more often than that would die again: the supervisor is to know."""


class EngineLoop(LitLoop):  # type: ignore[misc]  # litserve has no types
    """Hands the engine process, its commands and its replies, to ``EngineProcess``."""

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

        def send(queue_id: int, uid: str, reply: Reply) -> None:
            self.put_response(transport, queue_id, uid, reply, LitAPIStatus.OK, LoopResponseType.STREAMING)

        engine = EngineProcess(
            config=lit_api.config, flavour=lit_api.flavour, limits=lit_api.limits, state=lit_api.state
        )
        engine.run(request_queue.get, send)


class GenerateAPI(litserve.LitAPI):  # type: ignore[misc]  # litserve has no types
    """What LitServe ships to the engine process: the configuration, and where to say how far it is."""

    def __init__(self, config: ServiceConfig, flavour: Flavour, limits: Limits) -> None:
        super().__init__(api_path="/generate", loop=EngineLoop(), stream=True)
        self.config = config
        self.flavour = flavour
        self.limits = limits
        self.state: Any = None
        """A dictionary shared by all processes: ``phase`` (loading, warming up, waiting for adapters, ready, leaving,
        draining, restarting, failed) and what is loaded."""

    def setup(self, device: str) -> None:
        """Nothing: the engine process loads the model itself, so that HTTP answers meanwhile."""

    def predict(self, x: object) -> object:
        """LitServe wants one; the loop draws."""
        raise AssertionError(f"the engine loop draws, not LitServe's: {x!r}")


class Server(litserve.LitServer):  # type: ignore[misc]  # litserve has no types
    """LitServe with our routes, error bodies, drain and restart."""

    def __init__(self, api: GenerateAPI) -> None:
        self._api = api
        self._has_failed = self._is_stopping = False
        self._is_leaving = multiprocessing.get_context("fork").Event()  # set here, read in the HTTP process
        self._restarts: deque[float] = deque(maxlen=_MOST_RESTARTS)
        mailboxes: dict[str, Any] = {}
        self._exchange = Exchange(
            mailboxes, max_requests=api.config.max_queue, pictures_at_a_time=max(1, api.config.max_rows // 2)
        )
        tokenize = plain_ids(load_tokenizer(api.flavour.folder))
        self._routes = Routes(api.config, api.flavour, api.limits, tokenize, self._exchange)
        super().__init__(api, accelerator="cpu", devices=1, timeout=False)
        self.response_buffer = mailboxes
        self.app.title = "Lithograph"
        self.app.version = VERSION
        self.app.description = "Pictures from Chinese and English prompts with LongCat-Image."
        self.app.add_middleware(ConnectionClose, is_leaving=self._is_leaving.is_set)
        serve_docs(self.app)
        if api.config.otlp_endpoint is not None:
            self.app.add_middleware(TracedRequests, endpoint=api.config.otlp_endpoint)
        for kind in (HTTPException, RefusedError, Exception):
            self.app.add_exception_handler(kind, _on_error)

    def serve(self) -> int:
        """Serve until SIGTERM, Ctrl-C or the end of a process that cannot be started again; return the exit code."""
        main = os.getpid()

        def interrupt(*_: object) -> None:
            # The forked HTTP process inherits this handler; uvicorn has its own, and raises the signal again when done.
            if os.getpid() != main:
                return
            if self._is_stopping:  # the drain is over, or somebody is in a hurry
                raise KeyboardInterrupt
            self._is_stopping = True
            threading.Thread(target=self._drain, daemon=True, name="drain").start()

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
                host=config.host,
                port=config.port,
                num_api_servers=1,
                log_level="warning",
                log_config=None,  # uvicorn's own: it would write lines of another form
                generate_client_file=False,
            )
        except KeyboardInterrupt:  # before LitServe was up: it looks after its processes only from then on
            for worker in getattr(self, "inference_workers", ()):
                worker.terminate()
        except (EOFError, ConnectionError):  # LitServe waits on the manager process, and that is gone
            self._fail("manager")
        return 1 if self._has_failed else 0

    def verify_worker_status(self) -> None:
        """LitServe would start HTTP only once the engine process is up; here it answers, not ready, from the start."""

    def _init_manager(self, num_api_servers: int) -> Any:
        """Runs in the main process before the others are started."""
        librarys = logging.getLogger("litserve")  # what it says is to look like what we say
        librarys.handlers.clear()
        librarys.propagate = True
        manager = super()._init_manager(num_api_servers)
        self._api.state = manager.dict(phase="loading")
        self._routes.share(self._api.state)
        commands = self.litapi_request_queues[self._api.api_path]
        self._exchange.connect(lambda command: commands.put((0, command.id, command)))
        self._manager_process = manager._process  # it holds the queues: without it, nothing moves
        return manager

    def _perform_graceful_shutdown(self, *arguments: Any) -> None:
        if not self._is_stopping:  # nobody asked: LitServe stops by itself when the manager process is gone
            self._is_stopping = True
            self._fail("manager")
        super()._perform_graceful_shutdown(*arguments)

    def _drain(self) -> None:
        """Send away those who keep connections, take no more requests, let those under way finish, then stop."""
        config, state = self._api.config, self._api.state
        self._is_leaving.set()
        if config.linger_seconds and state is not None and state["phase"] == "ready":
            state.update(phase="leaving")
            log.info("leaving: requests are taken for %g s more", config.linger_seconds)
            time.sleep(config.linger_seconds)
        begin = time.monotonic()
        if state is not None:
            state.update(phase="draining")
        log.info(
            "stopping once %d requests are finished, in %g s at most", self._exchange.unfinished, config.grace_seconds
        )
        while self._exchange.unfinished and time.monotonic() - begin < config.grace_seconds:
            time.sleep(0.05)
        if left := self._exchange.unfinished:
            log.warning("%d requests are not finished after %g s; stopping anyway", left, config.grace_seconds)
            self.uvicorn_graceful_timeout = 1
        os.kill(os.getpid(), signal.SIGTERM)

    def _fail(self, process: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self.uvicorn_graceful_timeout = 1  # requests that wait for a dead process would be waited for
            log.error("the %s process ended; stopping", process)

    def _register_middleware(self) -> None:
        """None of LitServe's: it would gzip pictures."""

    def _register_internal_endpoints(self) -> None:
        self.app.openapi_tags = [{"name": tag} for tag in ("model", "jobs", "openai", "adapters", "operations")]
        self._routes.add_to(self.app)

    def _register_api_endpoints(self, *_: object) -> None:
        self._routes.add_generate(self.app)

    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: dict[int, Any]) -> None:  # noqa: ARG002
        """Start the engine process again when it ends; stop the server when another does, instead of answering nothing."""

        def watch() -> None:
            while True:
                # Not join(): two threads that wait for one child race for its exit status, and the loser thinks it alive.
                processes = {"HTTP": list(uvicorn_workers.values()), "manager": [self._manager_process]}
                sentinels = {p.sentinel: name for name, group in processes.items() for p in group}
                engine = self.inference_workers[0]
                ended = multiprocessing.connection.wait([*sentinels, engine.sentinel])
                if engine.sentinel in ended and self._bring_back(engine.pid):
                    continue
                if self._is_stopping:
                    return
                self._is_stopping = True
                self._fail(next((sentinels[s] for s in ended if s in sentinels), "engine"))
                os.kill(os.getpid(), signal.SIGTERM)
                return

        threading.Thread(target=watch, daemon=True, name="process-watch").start()

    def _bring_back(self, pid: int) -> bool:
        """The engine process has ended: tell whoever waits for it, and start another, unless that is hopeless."""
        metrics.process_ended(pid)
        state, now = self._api.state, time.monotonic()
        was_ready = state["phase"] == "ready"
        if was_ready:
            state.update(phase="restarting")
        self._transport.send((ENGINE, (None, LitAPIStatus.OK, LoopResponseType.STREAMING, 0)), consumer_id=0)
        if self._is_stopping or not was_ready:  # not wanted any more, or it could not even load
            return False
        if len(self._restarts) == _MOST_RESTARTS and now - self._restarts[0] < _RESTART_WINDOW_SECONDS:
            log.error("the engine process ended %d times in %.0f s", _MOST_RESTARTS + 1, now - self._restarts[0])
            return False
        # The dead engine was waiting for a command, and the manager process still waits on its behalf: the next is lost.
        self._exchange.put(Cancel(id=""))
        self._restarts.append(now)
        metrics.ENGINE_RESTARTS.inc()
        log.error("the engine process ended; starting it again")
        self.inference_workers[0] = self.launch_single_inference_worker(self._api, 0)
        return True


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


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return reply_to_http_error(error, request.method, request.url.path)
    return reply_to_error(error)
