"""The engine process: load the model, draw a warm-up picture, then carry out commands until it is ended.

The main thread makes the steps; one thread reads commands, another looks for adapters. LitServe is not known here: commands
come from ``receive``, replies go to ``send``.
"""

import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

from longcat.errors import UserError
from longcat.flavour import Flavour
from longcat.logs import set_up_logging, silence_import_noise
from longcat.tokenizer import plain_ids
from service import metrics
from service.config import ServiceConfig
from service.limits import Limits
from service.messages import AdapterCommand, Cancel, Command, Draw, Reply
from service.observer import Observer
from service.picture import ModelIdentity
from service.replies import failure_of
from service.schema import GenerateRequest
from service.tracing import Tracing

if TYPE_CHECKING:
    from service.renderer import Renderer, RenderEvent

log = logging.getLogger("lithograph")

_IDLE_SECONDS = 0.5
"""How long the step loop sleeps at most before it looks at deadlines."""

Receive = Callable[[], tuple[int, str, Command]]
"""Waits for the next command: the process and the id that its replies go to, and the command."""
Send = Callable[[int, str, Reply], None]
"""One reply to that process and id. Called from any thread."""


@dataclass(frozen=True, kw_only=True)
class EngineProcess:
    """One device's engine, and what it needs to know."""

    config: ServiceConfig
    flavour: Flavour
    limits: Limits
    state: MutableMapping[str, Any]
    """Shared by all processes of the service: ``phase``, and what is loaded."""

    def run(self, receive: Receive, send: Send) -> NoReturn:
        """Draw whatever is ordered, together. Ends the process if the model cannot be loaded."""
        begin = time.monotonic()
        renderer = self._load()
        endpoint = self.config.otlp_endpoint
        tracing = None if endpoint is None else Tracing(endpoint)
        renderer.observe = Observer(tracing)

        def read_commands() -> None:
            while True:
                queue_id, uid, command = receive()
                _carry_out(command, renderer, begin, functools.partial(send, queue_id, uid))

        threading.Thread(target=read_commands, daemon=True, name="commands").start()
        threading.Thread(target=self._look_for_adapters, args=(renderer, begin), daemon=True, name="adapters").start()
        # Not while it loads: there is nothing to finish, and Python hears of a signal only between two steps of its own,
        # which reading a large file can keep apart for long.
        signal.signal(signal.SIGTERM, _leave)
        try:
            while True:
                renderer.step(_IDLE_SECONDS)
        except SystemExit:
            if tracing is not None:
                tracing.close()
            os._exit(0)  # for seconds, Python would take apart what the kernel frees at once

    def _load(self) -> "Renderer":
        """Load the model and draw a warm-up picture; end the process if that fails."""
        try:
            set_up_logging(self.config.log_format)
            silence_import_noise()
            from service.renderer import Renderer  # here, so that the HTTP processes never import torch

            config = self.config
            renderer = Renderer(config.model, self.flavour, max_rows=config.max_rows, adapters=config.adapters)
            self.state.update(phase="warming up", device=str(renderer.model.device), **renderer.identity.model_dump())
            renderer.engine.warm_up()
            tokenize = plain_ids(renderer.model.tokenizer)
            renderer.render(self.limits.resolve(GenerateRequest(prompt="warm-up", steps=1), tokenize))
        except UserError as error:
            log.error("cannot serve: %s", error)
        except Exception:
            log.exception("cannot serve: loading failed")
        else:
            return renderer
        self.state.update(phase="failed")
        sys.exit(1)

    def _look_for_adapters(self, renderer: "Renderer", begin: float) -> None:
        """Look at storage every few seconds; announce readiness once the required adapters are there."""
        device, registry, config = str(renderer.model.device), renderer.registry, self.config.adapters
        if registry is not None and config is not None:
            registry.look()
            if missing := registry.missing(config.required):
                self.state.update(phase="waiting for adapters")
                log.warning("not ready: waiting for adapters %s in %s", ", ".join(missing), config.uri)
            while registry.missing(config.required):
                registry.wait(config.poll_seconds)
        self._announce(renderer.identity, device, time.monotonic() - begin)
        while registry is not None and config is not None:
            registry.wait(config.poll_seconds)

    def _announce(self, identity: ModelIdentity, device: str, seconds: float) -> None:
        shown = identity.model_dump(include={"flavour", "hash", "precision", "dtype"})
        metrics.MODEL_INFO.labels(**shown, device=device, version=version("lithograph")).set(1)
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


def _carry_out(command: Command, renderer: "Renderer", started: float, send: Callable[[Reply], None]) -> None:
    """Pass a command on. Requests from before ``started`` were meant for an engine process that has died."""

    def on_event(event: "RenderEvent") -> None:
        send(failure_of(event, request_id=command.id) if isinstance(event, Exception) else event)

    def manage(command: AdapterCommand) -> None:
        try:
            send(renderer.manage(command))
        except Exception as error:
            send(failure_of(error))

    match command:
        case Draw():
            if command.submitted_at > started:
                renderer.submit(command, on_event)
        case Cancel():
            renderer.cancel(command.id)
        case AdapterCommand():  # may wait for storage, and requests must not
            threading.Thread(target=manage, args=(command,), daemon=True, name="manage").start()


def _leave(*_: object) -> None:
    """Leave the step loop."""
    sys.exit(0)
