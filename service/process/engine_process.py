"""The engine process: load the model, generate a warm-up image, then carry out commands until it is ended.

The main thread makes the denoising steps; one thread reads commands, another polls the adapter storage. This module does not
know LitServe: commands come from ``receive``, replies go to ``send``.
"""

import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn

from longcat.errors import UserError
from longcat.logs import log_event, set_up_logging, silence_import_noise
from longcat.model.flavour import Flavour
from longcat.model.tokenizer import plain_ids
from service.access.usage import UsageLedger
from service.config import ServiceConfig
from service.observability import metrics
from service.observability.tracing import Tracing
from service.process.engine_commands import EngineCommands, Receive, Send
from service.process.engine_start import see_only
from service.process.finished_requests import FinishedRequests
from service.wire.editing.reading import blank_file
from service.wire.limits import Limits
from service.wire.messages import Heartbeat, engine_mailbox
from service.wire.picture import ModelIdentity
from service.wire.schema import GenerateRequest
from service.wire.state import EngineState, ServicePhase, ServiceState

if TYPE_CHECKING:
    from service.renderer import Renderer

log = logging.getLogger("lithograph")

_IDLE_SECONDS = 0.5
"""The longest sleep of the step loop between two checks of deadlines."""

_HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class EngineProcess:
    """The engine process of one device."""

    config: ServiceConfig
    flavour: Flavour
    limits: Limits
    state: ServiceState
    number: int
    """The engine's number, from 0."""

    @property
    def _engine(self) -> EngineState:
        return self.state.engines[self.number]

    def run(self, receive: Receive, send: Send) -> NoReturn:
        """Load the model, then carry out commands. Ends the process if the model cannot be loaded, or on SIGTERM."""
        starting_since = self._engine.since  # since the command began, or since the last engine process ended
        begin = time.monotonic()
        self._engine.count_process()
        renderer = self._load()
        metrics.LOAD_SECONDS.labels(renderer.device_name).set(time.monotonic() - begin)
        endpoint = self.config.otlp_endpoint
        tracing = None if endpoint is None else Tracing(endpoint)
        folder = self.config.access.state_dir
        ledger = None if folder is None else UsageLedger(folder)
        renderer.observe = FinishedRequests(tracing, ledger, model=self.flavour.name)

        commands = EngineCommands(renderer, send, started=begin)
        threading.Thread(target=commands.run, args=(receive,), daemon=True, name="commands").start()
        threading.Thread(
            target=self._poll_adapters, args=(renderer, starting_since), daemon=True, name="adapters"
        ).start()
        # Only now: while the model loads there is nothing to finish, and Python runs a handler only between two bytecode
        # instructions, which reading a large file can delay for long.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            self._make_steps(renderer, functools.partial(send, engine_mailbox(self.number)))
        except SystemExit:
            if ledger is not None:
                ledger.close()
            if tracing is not None:
                tracing.close()
            os._exit(0)  # Python would take seconds to free memory that the kernel frees at once

    def _make_steps(self, renderer: "Renderer", send: Callable[[Heartbeat], None]) -> NoReturn:
        """Run the step loop, and send heartbeats. Ends the process if the device is lost."""
        from longcat.model.device.errors import is_device_lost  # here, as in _load, because it imports torch

        heartbeat, longest = time.monotonic(), 0.0
        while True:
            begin = time.monotonic()
            try:
                renderer.step(_IDLE_SECONDS)
            except RuntimeError as error:
                if is_device_lost(error):
                    _end_without_device(renderer.device_name, error)
                raise
            end = time.monotonic()
            longest = max(longest, end - begin)
            if end - heartbeat >= _HEARTBEAT_SECONDS:
                send(
                    Heartbeat(
                        step_seconds=longest,
                        steps_left=renderer.engine.steps_left(),
                        adapters=tuple(slot.reference for slot in renderer.engine.slot_table.loaded),
                    )
                )
                heartbeat, longest = end, 0.0

    def _on_sigterm(self, *_: object) -> None:
        """Leave the step loop if the server is stopping; otherwise make the main process stop it, which drains first."""
        if self.state.phase is ServicePhase.STOPPING:
            sys.exit(0)
        main = multiprocessing.parent_process()
        assert main is not None
        assert main.pid is not None
        os.kill(main.pid, signal.SIGTERM)

    def _load(self) -> "Renderer":
        """Load the model and generate a warm-up image; end the process if that fails."""
        try:
            set_up_logging(self.config.log_format)
            silence_import_noise()
            config = self.config
            model_config, name = config.engines[self.number], config.device_names[self.number]
            device = see_only(model_config.device)
            from longcat.model.device.threads import take_share  # here, so that the HTTP processes never import torch
            from service.renderer import Renderer

            if config.devices and device == "cpu":
                take_share(len(config.devices))
            renderer = Renderer(
                model_config.model_copy(update={"device": device}),
                self.flavour,
                device_name=name if config.devices or device != model_config.device else None,
                max_rows=config.max_rows,
                max_pixels=self.limits.max_pixels,
                adapters=config.adapters,
                provenance=config.provenance,
            )
            settings = renderer.settings
            self._engine.set_model(
                device=renderer.device_name,
                **renderer.identity.model_dump(),
                offload=settings.format.offload,
                **settings.capacity._asdict(),
            )
            self._engine.begin(ServicePhase.WARMING_UP)
            renderer.engine.warm_up()
            model = self.flavour.settings
            request = GenerateRequest(
                prompt="warm-up", steps=1, image=blank_file(model.default_size_px) if model.edits else None
            )
            resolved, picture = self.limits.resolve_with_picture(request, plain_ids(renderer.model.tokenizer))
            renderer.render(resolved, picture=picture)
        except UserError as error:
            log.error("cannot serve on device %s: %s", name, error)
        except Exception:  # any: the other processes read the failure from the state
            log.exception("cannot serve: loading failed")
        else:
            return renderer
        self._engine.begin(ServicePhase.FAILED)
        sys.exit(1)

    def _poll_adapters(self, renderer: "Renderer", starting_since: float) -> None:
        """Announce readiness once the required adapters are loaded; poll storage every few seconds."""
        registry, config = renderer.registry, self.config.adapters
        if registry is not None and config is not None and config.required:
            self._engine.begin(ServicePhase.WAITING)
            waiting_since = time.monotonic()
            missing = registry.load_required(config.required)
            if missing:
                log.warning("not ready: waiting for adapters %s in %s", ", ".join(missing), config.uri)
            while missing:
                registry.poll()
                time.sleep(config.poll_seconds)
                missing = registry.load_required(missing)
            seconds = round(time.monotonic() - waiting_since, 3)
            log_event(log, "required_adapters_loaded", adapters=list(config.required), seconds=seconds)
        self._announce(renderer.identity, renderer.device_name, time.monotonic() - starting_since)
        while registry is not None and config is not None:
            registry.poll()
            time.sleep(config.poll_seconds)

    def _announce(self, identity: ModelIdentity, device: str, seconds: float) -> None:
        shown = identity.model_dump(include={"flavour", "hash", "precision", "dtype"})
        metrics.MODEL_INFO.labels(**shown, device=device, version=version("lithograph")).set(1)
        metrics.begin_engine(device)
        self._engine.begin(ServicePhase.READY)
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


def _end_without_device(device: str, error: Exception) -> NoReturn:
    """End the process: another one can use the device again. Its requests are answered by the HTTP process."""
    metrics.DEVICE_LOSSES.labels(device).inc()
    log.critical("the device %s fails every operation; ending the engine process", device, exc_info=error)
    os._exit(1)  # a regular exit would wait for threads, and for the device
