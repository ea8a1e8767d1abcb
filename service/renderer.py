"""A loaded model that turns resolved requests into picture files. The service and the command line use it."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

from longcat.adapter.importing import import_adapter
from longcat.adapter.manifest import Manifest
from longcat.adapter.publishing import remove_adapter
from longcat.adapter.reference import parse_new_name
from longcat.errors import DeadlineError, NoAdapterStorageError
from longcat.logs import log_event
from longcat.model.device.choice import check_compiler, parse_device, parse_dtype
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.model.memory.in_use import memory_of
from longcat.model.precision import Offload
from longcat.model.quantized.snapshot import snapshots_of
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.storage.files import FileStorage
from longcat.storage.layered import LayeredStorage
from longcat.storage.opening import open_storage
from service.adapters.cache import AdapterCache, Checks
from service.adapters.registry import Registry
from service.config import AdapterConfig, ModelConfig
from service.engine.encoding.prompt_files import prompt_files
from service.engine.engine import Engine
from service.engine.request_state import OnEvent
from service.memory.settings import decide
from service.observability import metrics
from service.observability.timeline import Timeline
from service.wire.events import ErrorEvent, Event, ResultEvent, StepEvent
from service.wire.messages import AdapterAction, AdapterCommand, AdapterReport, GenerateCommand, SlotStatus
from service.wire.picture import ModelIdentity, PictureWriter
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import MAX_ADAPTERS, ResolvedRequest

log = logging.getLogger("lithograph")

Observe = Callable[[GenerateCommand, Timeline, ResultEvent | ErrorEvent | None], None]
"""Called once at the end of every request, with its last event, or None if it was cancelled. Called from any thread."""
_WAIT_SECONDS = 0.05
"""The longest wait of ``render``'s loop for a worker thread."""


class Renderer:
    """A model, its engine and its adapters."""

    def __init__(
        self,
        config: ModelConfig,
        flavour: Flavour,
        *,
        device_name: str | None = None,
        max_rows: int | None = None,
        max_pixels: int | None = None,
        adapters: AdapterConfig | None = None,
        provenance: ProvenanceConfig | None = None,
    ) -> None:
        """Load the model.

        ``device_name``: name in metrics and reports, by default the device's own. ``max_rows``: most rows of a forward at
        the default size; None lets the device's memory decide. ``max_pixels``: of an image; None is the model's own limit.
        ``provenance``: metadata of files, by default those of ``ProvenanceConfig``.
        Raises ``ConfigError``, ``DeviceError`` or ``PrecisionError`` if this machine cannot.
        """
        device = parse_device(config.device)
        dtype = str(parse_dtype(config.dtype, device)).removeprefix("torch.")
        if config.compile:
            check_compiler(device)
        self.settings = settings = decide(
            config, adapters, flavour, max_rows=max_rows, max_pixels=max_pixels, device=device, dtype=dtype
        )
        self.model = load(
            flavour,
            device=config.device,
            dtype=config.dtype,
            quantized_folder=snapshots_of(flavour, config.quantized_dir),
            **settings.format._asdict(),
        )
        self.device_name = device_name or str(self.model.device)
        self.identity = _identity(self.model)
        self.engine = Engine(
            self.model,
            PictureWriter(self.identity, provenance or ProvenanceConfig()),
            max_rows=settings.capacity.rows,
            adapter_slots=settings.capacity.slots if adapters else 0,
            adapter_rank=settings.capacity.rank if adapters else 1,
            compiled=config.compile,
            background=settings.format.offload is Offload.NONE,
            memory=settings.memory,
            prompt_files=prompt_files(self.model, config),
        )
        self.registry = self._open_registry(adapters) if adapters else None
        self.observe: Observe | None = None
        self._unfinished: dict[str, tuple[GenerateCommand, Timeline]] = {}
        self._counted: tuple[int, ...] = (0,) * 11

    def submit(self, command: GenerateCommand, on_event: OnEvent) -> None:
        """Queue a request. ``on_event`` gets its events, the last of which is ``ResultEvent`` or ``ErrorEvent``."""
        timeline = Timeline(keeps_steps=command.trace is not None)
        self._unfinished[command.id] = (command, timeline)

        def observed(event: Event) -> None:
            if command.id not in self._unfinished:  # cancelled
                return
            if isinstance(event, ResultEvent | ErrorEvent):
                self._finish(command.id, event)
            on_event(event)

        self.engine.submit(command, observed, timeline)

    def cancel(self, request_id: str) -> None:
        """Stop the steps of a request, and send no more events of it.

        After its deadline it counts as one that took too long, not as one that its client gave up: the HTTP process does not
        wait for the end of a long step.
        """
        self.engine.cancel(request_id)
        command, _ = self._unfinished.get(request_id, (None, None))
        is_late = command is not None and time.monotonic() > command.deadline
        self._finish(request_id, ErrorEvent(DeadlineError()) if is_late else None)

    def step(self, wait_seconds: float) -> None:
        """Make one step of the engine, or wait for work."""
        begin = time.monotonic()
        if self.engine.step(wait_seconds):
            metrics.STEP_SECONDS.labels(self.device_name).observe(time.monotonic() - begin)
        self._update_metrics()

    def render(
        self,
        request: ResolvedRequest,
        on_step: Callable[[int, int], None] | None = None,
        *,
        picture: SourcePicture | None = None,
        defaulted: tuple[str, ...] = (),
    ) -> ResultEvent:
        """Generate the pictures of one request; call ``on_step`` with the steps made and the steps in all.

        ``picture``: of a request that changes one.
        ``defaulted``: fields for which adapters may have defaults (see ``GenerateCommand``).
        One request at a time, and not while ``step`` is called elsewhere. Raises the request's error.
        """
        last: list[ResultEvent | ErrorEvent] = []
        made = 0

        def on_event(event: Event) -> None:
            nonlocal made
            if isinstance(event, ResultEvent | ErrorEvent):
                last.append(event)
            elif isinstance(event, StepEvent) and on_step is not None:
                made += 1
                on_step(made, event.steps * request.num_images)

        now = time.monotonic()
        command = GenerateCommand(
            id="local", request_id="local", request=request, picture=picture, defaulted=defaulted, submitted_at=now,
            deadline=math.inf, progress=True,
        )  # fmt: skip
        self.submit(command, on_event)
        while not last:
            self.engine.step(_WAIT_SECONDS)
        if isinstance(last[0], ErrorEvent):
            raise last[0].error
        return last[0]

    def manage(self, command: AdapterCommand) -> AdapterReport:
        """Carry out an action on an adapter. Raises ``UserError`` or ``StorageError``."""
        registry = self.registry
        if registry is None:
            raise NoAdapterStorageError
        action, name = command.action, command.name
        found = None
        match action:
            case AdapterAction.FIND:
                found = registry.find(name)
            case AdapterAction.IMPORT:
                imported = import_adapter(
                    registry.storage,
                    name,
                    Path(command.path),
                    self.model.flavour,
                    max_rank=self.engine.slot_table.slots.rank,
                    replace=command.replace,
                )
                for warning in imported.warnings:
                    reference = imported.manifest.reference
                    log_event(log, "adapter_import_warning", logging.WARNING, adapter=reference, reason=str(warning))
                registry.load(name)
            case AdapterAction.LOAD:
                registry.load(name)
            case AdapterAction.PIN | AdapterAction.UNPIN:
                registry.pin(name, pinned=action is AdapterAction.PIN)
            case AdapterAction.UNLOAD:
                registry.unload(name)
            case AdapterAction.REMOVE:
                remove_adapter(registry.storage, name)
                registry.poll()
            case AdapterAction.POLL:
                registry.poll()
        return AdapterReport(
            storage=registry.storage.uri,
            reachable=registry.reachable,
            slots=self.engine.slot_table.slots.count,
            slots_used=tuple(
                SlotStatus(adapter=o.reference, device=self.device_name, pictures=o.pictures)
                for o in self.engine.slot_table.loaded
            ),
            adapters=tuple(registry.status()) if found is None else (found,),
        )

    def _open_registry(self, config: AdapterConfig) -> Registry:
        storage = open_storage(config.uri, endpoint_url=config.endpoint_url)
        if config.label is not None:
            storage.uri = config.label
        if (packaged := self.model.flavour.adapters) is not None and packaged.as_uri() != config.uri:
            storage = LayeredStorage(storage, FileStorage(packaged))
        slots = self.engine.slot_table.slots
        cache = AdapterCache(
            storage,
            base_hash=self.identity.hash,
            checks=Checks(manifest=self._check_manifest, weights=slots.check),
            staged=slots.staged,
            folder=config.folder,
            memory_bytes=config.cache_mib * 2**20,
            disk_bytes=config.disk_mib * 2**20,
        )
        registry = Registry(
            storage,
            cache=cache,
            most_pinned=slots.count - MAX_ADAPTERS,  # one request must always find as many slots as it can use
            on_pins=self.engine.pin,
            prefetch=config.prefetch,
        )
        self.engine.workers.source = registry
        return registry

    def _check_manifest(self, manifest: Manifest) -> None:
        parse_new_name(manifest.name, base=self.identity.flavour)  # published by any program
        self.engine.slot_table.slots.check_manifest(manifest)

    def _finish(self, request_id: str, last: ResultEvent | ErrorEvent | None) -> None:
        command, timeline = self._unfinished.pop(request_id, (None, None))
        if command is None or timeline is None:
            return
        timeline.close(time.monotonic())
        if self.observe is not None:
            self.observe(command, timeline, last)

    def _update_metrics(self) -> None:
        """Set the engine's gauges, and add to its counters."""
        engine, cache, device = self.engine, self.engine.workers.prompts.cache_counts, self.device_name
        metrics.QUEUED.labels(device).set(engine.queued)
        metrics.ACTIVE_ROWS.labels(device).set(engine.active_rows)
        metrics.PARKED.labels(device).set(engine.parked)
        metrics.SLOTS.labels(device).set(engine.slot_table.slots.count)
        metrics.SLOTS_USED.labels(device).set(len(engine.slot_table.loaded))
        for kind, size in memory_of(self.model.device).items():
            metrics.DEVICE_MEMORY.labels(device, kind).set(size)
        counts = (
            engine.slot_table.loads,
            engine.slot_table.evictions,
            engine.out_of_memory,
            engine.parkings,
            *engine.row_counts,
            *cache,
            engine.workers.sources.cache.hits,
            engine.workers.sources.cache.misses,
        )
        prompts = map(metrics.PROMPT_CACHE.labels, ("memory", "disk", "miss"))
        rows = (metrics.ROWS.labels(device, kind) for kind in ("computed", "reused"))
        sources = map(metrics.SOURCE_CACHE.labels, ("memory", "miss"))
        own = (metrics.OUT_OF_MEMORY.labels(device), metrics.PARKINGS.labels(device))
        counters = (metrics.SLOT_LOADS, metrics.SLOT_EVICTIONS, *own, *rows, *prompts, *sources)
        for counter, now, before in zip(counters, counts, self._counted, strict=True):
            counter.inc(now - before)
        self._counted = counts


def _identity(model: Components) -> ModelIdentity:
    flavour = model.flavour
    return ModelIdentity(
        flavour=flavour.name,
        revision=flavour.revision,
        hash=flavour.hash,
        precision=model.precision.value,
        text_encoder_precision=model.text_encoder_precision.value,
        dtype=str(model.dtype).removeprefix("torch."),
    )
