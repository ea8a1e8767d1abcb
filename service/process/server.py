"""The LitServe surface: the server, and how its processes start. Nothing else imports litserve.

LitServe's main process forks a manager process, which holds the queues, and the HTTP process. Then it starts an engine
process for each device (``service.process.engine_process``), which loads the model beside the running HTTP server:
``/healthz`` answers at once, ``/readyz`` once a warm-up image is generated. All end with the main process, however that
ends; a SIGTERM to any of them ends the server.
"""

import contextlib
import functools
import logging
import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from multiprocessing.process import BaseProcess
from typing import Any

import litserve
from fastapi import FastAPI
from litserve.loops.base import LitLoop
from litserve.loops.loops import inference_worker
from litserve.transport.process_transport import MPQueueTransport
from litserve.utils import LitAPIStatus, LoopResponseType
from typing_extensions import override

from longcat.errors import LithographError
from longcat.model.flavour import Flavour
from longcat.model.tokenizer import load_tokenizer, plain_ids
from longcat.process.parent import end_with_parent
from service.config import DEFAULT_ROWS, ServiceConfig
from service.http.admission import Admission
from service.http.app import run_jobs, set_up
from service.http.edge.server import BACKLOG, uvicorn_arguments
from service.http.error_responses import error_body
from service.http.exchange.exchange import Exchange
from service.process.engine_process import EngineProcess
from service.process.engine_start import ctrl_c_held, engine_context, ignore_ctrl_c
from service.process.manager import start_manager
from service.process.port import check_port_is_free, port_errors
from service.process.supervisor import Supervisor
from service.wire.limits import Limits
from service.wire.messages import CancelCommand, Heartbeat, Reply, engine_mailbox
from service.wire.state import ServicePhase, ServiceState

log = logging.getLogger("lithograph")

_REPLY_SECONDS = 10
"""Time for replies that are still being sent when the last request has finished."""
_SIGNAL_SECONDS = 0.5
"""Longest time until a signal is handled that does not wake up the main thread."""


class EngineLoop(LitLoop):
    """Connects an engine process, its commands and its replies, with LitServe."""

    @override
    def __call__(
        self,
        lit_api: "GenerateAPI",
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: Any,
        *_: object,
    ) -> None:
        """LitServe's entry point, in the spawned process."""
        end_with_parent()
        ignore_ctrl_c()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the fork server ignores

        def send(uid: str, reply: Reply | Heartbeat) -> None:
            self.put_response(transport, 0, uid, reply, LitAPIStatus.OK, LoopResponseType.STREAMING)

        engine = EngineProcess(
            config=lit_api.config,
            flavour=lit_api.flavour,
            limits=lit_api.limits,
            state=lit_api.state,
            number=worker_id,
        )
        engine.run(request_queue.get, send)


class GenerateAPI(litserve.LitAPI):
    """The object that LitServe sends to the engine processes: the configuration, and the state shared by all processes."""

    def __init__(self, config: ServiceConfig, flavour: Flavour, limits: Limits) -> None:
        super().__init__(api_path="/generate", loop=EngineLoop(), stream=True)
        self.config = config
        self.flavour = flavour
        self.limits = limits
        self.state = ServiceState(config.device_names)

    def setup(self, device: str) -> None:
        """Do nothing: the engine process loads the model itself, so that HTTP answers meanwhile."""

    def predict(self, x: object) -> object:
        """LitServe requires the method; the engine loop never calls it."""
        raise AssertionError(f"the engine loop generates, not LitServe's: {x!r}")


class Server(litserve.LitServer):
    """LitServe with our routes, error bodies and supervision."""

    def __init__(self, api: GenerateAPI) -> None:
        self._api = api
        config = api.config
        mailboxes: dict[str, Any] = {}
        self._exchange = Exchange(
            mailboxes,
            api.state,
            max_requests=config.max_queue,
            pictures_at_a_time=max(1, (config.max_rows or DEFAULT_ROWS) // 2),
            stall_seconds=config.stall_seconds,
        )
        self._engines: dict[int, BaseProcess] = {}
        self._supervisor = Supervisor(config, api.state, self._exchange)
        tokenize = plain_ids(load_tokenizer(api.flavour.folder))
        self._admission = Admission(config, api.flavour, api.limits, tokenize, self._exchange, api.state)
        super().__init__(api, accelerator="cpu", devices=1, timeout=False)
        self.uvicorn_graceful_timeout = _REPLY_SECONDS
        self.response_buffer = mailboxes

    def serve(self) -> int:
        """Serve until SIGTERM, Ctrl-C or the end of a process that cannot be started again; return the exit code."""
        self._supervisor.handle_signals()
        config = self._api.config
        check_port_is_free(config.host, config.port)
        log.info(
            "starting %s %s, precision %s, text encoder %s, device %s, http://%s:%d%s",
            self._api.flavour.name,
            self._api.flavour.hash[:12],
            config.model.precision,
            config.model.text_encoder_precision,
            ", ".join(config.device_names),
            config.host,
            config.port,
            config.http.root_path,
        )
        try:
            self.run(
                host=config.host,
                port=config.port,
                num_api_servers=1,
                log_level="warning",
                **uvicorn_arguments(config.http, write_error=_error_json),
                log_config=None,  # uvicorn's own logging writes lines of another form
                generate_client_file=False,
            )
        except KeyboardInterrupt:  # before LitServe was up
            pass
        except (EOFError, ConnectionError):  # LitServe waits on the manager process, and that has ended
            self._fail_without_manager()
        for process in multiprocessing.active_children():  # left by an interrupt; Python would wait for them
            process.kill()
        log.info("stopped, exit code %d", self._supervisor.exit_code)
        return self._supervisor.exit_code

    def verify_worker_status(self) -> None:
        """Return at once: LitServe would delay HTTP until the engine process is up; here HTTP answers from the start."""

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Run in the HTTP process while it serves."""
        end_with_parent()
        async with super().lifespan(app), run_jobs(self.app):
            self._supervisor.pass_signals_on()
            self._supervisor.http_has_started.set()
            yield

    def _init_manager(self, num_api_servers: int) -> Any:
        """Start the manager process, in the main process and before all others."""
        library_log = logging.getLogger("litserve")  # its lines take the form of ours
        library_log.handlers.clear()
        library_log.propagate = True
        manager: Any = start_manager()
        self.workers_setup_status = manager.dict()
        self._shutdown_event = manager.Event()
        self._transport = MPQueueTransport(manager, [manager.Queue() for _ in range(num_api_servers)])
        self._command_queues = [manager.Queue() for _ in self._api.state.engines]
        self._exchange.connect([queue.put for queue in self._command_queues])
        self._manager_process = manager._process  # without it, no message arrives
        return manager

    @override
    def _start_server(
        self, port: int, number: int, level: str, sockets: list[socket.socket], *rest: Any, **more: Any
    ) -> Any:
        """Start the HTTP process. Raises ``UserError`` if another server has begun to listen since the port was free.

        Both have bound the port then, and uvloop takes a socket that cannot listen for one that does.
        """
        self._supervisor.exit_code = 1  # in that case: LitServe shuts down before it passes the error on
        with port_errors(self._api.config.host, port):
            sockets[0].listen(BACKLOG)
        self._supervisor.exit_code = 0
        return super()._start_server(port, number, level, sockets, *rest, **more)

    def _perform_graceful_shutdown(self, *arguments: Any) -> None:
        if not self._supervisor.is_stopping:  # LitServe stops by itself when the manager process has ended
            self._fail_without_manager()
        # The HTTP process itself waits no longer than _REPLY_SECONDS.
        self.uvicorn_graceful_timeout = 1 if self._supervisor.is_hurried else 2 * _REPLY_SECONDS
        self._api.state.set_shutdown(ServicePhase.STOPPING)
        super()._perform_graceful_shutdown(*arguments)

    def _fail_without_manager(self) -> None:
        if not self._supervisor.exit_code:
            self._supervisor.fail("manager")

    def _register_middleware(self) -> None:
        """Add none of LitServe's: it would compress images with gzip."""

    def _register_internal_endpoints(self) -> None:
        set_up(self.app, self._admission, is_draining=lambda: self._api.state.is_shutting_down)

    def _register_api_endpoints(self, *_: object) -> None:
        """Add nothing: ``set_up`` has added ``POST /generate`` with all other endpoints."""

    @override
    def launch_inference_worker(self, lit_api: GenerateAPI) -> list[Any]:
        """Start none: the supervisor does, once the HTTP process runs."""
        return []

    @override
    def launch_single_inference_worker(self, lit_api: GenerateAPI, worker_id: int) -> Any:
        """Start an engine process in the context for its device. Takes as long as a fork server's imports."""
        device = lit_api.config.engines[worker_id].device
        process = engine_context(device).Process(
            target=_engine_process,
            args=(
                lit_api,
                device,
                worker_id,
                self._command_queues[worker_id],
                self._transport,
                self.workers_setup_status,
                self._callback_runner,
                self.restart_workers,
            ),
            name=f"engine {worker_id}",
            daemon=True,  # a process started during a shutdown is not waited for
        )
        with ctrl_c_held():
            process.start()
        self._engines[worker_id] = process
        self.inference_workers[:] = list(self._engines.values())
        if self._supervisor.is_stopping:  # a process that has just been forked ignores SIGTERM still
            process.kill()
        return process

    @override
    def _start_worker_monitoring(self, manager: Any, uvicorn_workers: dict[int, Any]) -> None:
        """Start our supervisor, which replaces LitServe's and starts the engine processes. Returns at the server's end."""
        processes = {"HTTP": uvicorn_workers[0], "manager": self._manager_process}
        threads = {"watch": functools.partial(self._supervisor.watch, processes)}
        for number in range(len(self._api.state.engines)):
            threads[f"engine {number}"] = functools.partial(self._run_engine, number)
        for name, target in threads.items():
            threading.Thread(target=target, daemon=True, name=name).start()
        self._supervisor.has_started.set()
        # LitServe waits without a time limit. The main thread handles signals, and one that another thread receives, or that
        # comes just before it waits, does not wake it up.
        while not self._shutdown_event.wait(_SIGNAL_SECONDS):
            pass

    def _run_engine(self, number: int) -> None:
        self._supervisor.run_engine(
            self._api.state.engines[number],
            lambda: self.launch_single_inference_worker(self._api, number),
            lambda: self._after_engine(number),
        )

    def _after_engine(self, number: int) -> None:
        """Notify the HTTP process, which answers the requests of the ended engine process with an error."""
        message = (engine_mailbox(number), (None, LitAPIStatus.OK, LoopResponseType.STREAMING, 0))
        with contextlib.suppress(OSError, EOFError):  # the manager process has ended, too
            self._transport.send(message, consumer_id=0)
            # The engine was waiting for a command, and the manager process still waits on its behalf: the next one is lost.
            self._command_queues[number].put((time.monotonic(), CancelCommand(id="")))


def _engine_process(lit_api: GenerateAPI, *arguments: Any) -> None:
    """Run LitServe's loop in an engine process, unless the server has ended while the process started."""
    try:
        inference_worker(lit_api, *arguments)
    except (OSError, EOFError):  # the manager process has ended
        if not lit_api.state.is_shutting_down:
            raise


def _error_json(error: LithographError, request_id: str) -> tuple[int, bytes]:
    status, body = error_body(error, request_id)
    return status, body.model_dump_json().encode()
