"""A loaded model that turns resolved requests into picture files. The service and the command line share it."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from longcat.adapter import remove_adapter
from longcat.errors import UserError
from longcat.flavour import Flavour
from longcat.loading import check_compiler, load, parse_device
from longcat.memory import memory_of
from longcat.precision import Offload, parse_precision
from longcat.storage import open_storage
from service import metrics
from service.adapter_cache import AdapterCache
from service.config import AdapterConfig, ModelConfig
from service.engine import Engine
from service.importing import import_adapter
from service.messages import AdapterAction, AdapterCommand, AdapterReport, Draw, PreviewFile, SlotStatus, Step
from service.orders import AdapterUse, Drawn, Event, Order, Preview, Progress
from service.picture import ModelIdentity, Recipe, Rendered, encode_picture, encode_preview
from service.registry import Registry
from service.schema import AppliedAdapter, ResolvedRequest, Timings
from service.timeline import Phase, Timeline

RenderEvent = Step | PreviewFile | Rendered | Exception
OnEvent = Callable[[RenderEvent], None]
"""Called from any thread. The last event is ``Rendered`` or an exception."""
Observe = Callable[[Draw, Timeline, Rendered | Exception | None], None]
"""Told once of every request that is over, and what it came to: None if it was cancelled. Called from any thread."""


class Renderer:
    """Draws requests and writes them as files that carry their recipe."""

    def __init__(
        self, config: ModelConfig, flavour: Flavour, *, max_rows: int, adapters: AdapterConfig | None = None
    ) -> None:
        """Load the model. Raises ``DeviceError`` or ``PrecisionError`` if this machine cannot."""
        if config.compile:
            check_compiler(parse_device(config.device))
        self.model = load(
            flavour,
            precision=parse_precision(config.precision),
            text_encoder_precision=parse_precision(config.text_encoder_precision),
            device=config.device,
            dtype=config.dtype,
            offload=Offload(config.offload),
        )
        self.identity = ModelIdentity(
            flavour=flavour.name,
            revision=flavour.revision,
            hash=flavour.hash,
            precision=self.model.precision.value,
            text_encoder_precision=self.model.text_encoder_precision.value,
            dtype=str(self.model.dtype).removeprefix("torch."),
        )
        self.engine = Engine(
            self.model,
            self._on_engine_event,
            max_rows=max_rows,
            adapter_slots=adapters.slots if adapters else 0,
            adapter_rank=adapters.rank if adapters else 1,
            compiled=config.compile,
            background=config.offload == Offload.NONE.value,
        )
        self.registry = self._open_registry(adapters) if adapters else None
        self.observe: Observe | None = None
        self._waiting: dict[str, tuple[Draw, Timeline, OnEvent]] = {}
        self._counted = (0, 0, 0, 0)

    def submit(self, draw: Draw, on_event: OnEvent) -> None:
        """Take in a request; ``on_event`` gets steps and previews, if wanted, and at last ``Rendered`` or an exception."""
        request, timeline = draw.request, Timeline(keeps_steps=draw.trace is not None)
        self._waiting[draw.id] = (draw, timeline, on_event)
        self.engine.submit(
            Order(
                id=draw.id,
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                width_px=request.width,
                height_px=request.height,
                steps=request.steps,
                guidance_scale=request.guidance_scale,
                cfg_renorm=request.cfg_renorm,
                rewrite_prompt=request.rewrite_prompt,
                seeds=tuple(request.seed + i for i in range(request.num_images)),
                adapters=tuple(AdapterUse(reference=choice.name, scale=choice.scale) for choice in request.adapters),
                deadline=draw.deadline,
                submitted_at=draw.submitted_at,
                progress=draw.progress,
                previews=draw.previews,
                timeline=timeline,
            )
        )

    def cancel(self, request_id: str) -> None:
        """Nobody waits for a request any more."""
        self.engine.cancel(request_id)
        self._finish(request_id, None)

    def step(self, wait_seconds: float) -> None:
        """Let the engine make a step, waiting for work if there is none."""
        begin = time.monotonic()
        if self.engine.step(wait_seconds):
            metrics.STEP_SECONDS.observe(time.monotonic() - begin)
        self._update_metrics()

    def render(self, request: ResolvedRequest, on_step: Callable[[int, int], None] | None = None) -> Rendered:
        """Draw and encode every picture of a request; ``on_step`` hears steps made and steps in all.

        Only one request at a time, and not while ``step`` is called elsewhere. Raises what went wrong.
        """
        outcome: list[Rendered | Exception] = []
        made = 0

        def on_event(event: RenderEvent) -> None:
            nonlocal made
            if isinstance(event, Rendered | Exception):
                outcome.append(event)
            elif isinstance(event, Step) and on_step is not None:
                made += 1
                on_step(made, event.steps * request.num_images)

        draw = Draw(id="", request=request, submitted_at=time.monotonic(), deadline=math.inf, progress=True)
        self.submit(draw, on_event)
        while not outcome:
            self.engine.step(0.05)
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def manage(self, command: AdapterCommand) -> AdapterReport:
        """Do something about an adapter. Raises ``UserError`` or ``StorageError``."""
        registry = self.registry
        if registry is None:
            raise UserError("no adapter storage is configured here; start with --adapters")
        action, name = command.action, command.name
        match action:
            case AdapterAction.IMPORT:
                import_adapter(
                    registry.storage,
                    name,
                    Path(command.path),
                    self.model.flavour,
                    max_rank=self.engine.table.slots.rank,
                    replace=command.replace,
                )
                registry.load(name)
            case AdapterAction.LOAD:
                registry.load(name)
            case AdapterAction.PIN | AdapterAction.UNPIN:
                registry.pin(name, pinned=action is AdapterAction.PIN)
            case AdapterAction.UNLOAD:
                registry.unload(name)
            case AdapterAction.REMOVE:
                remove_adapter(registry.storage, name)
                registry.look()
        return AdapterReport(
            storage=registry.storage.uri,
            reachable=registry.reachable,
            slots=self.engine.table.slots.count,
            slots_used=tuple(SlotStatus(adapter=o.reference, pictures=o.pictures) for o in self.engine.occupants),
            adapters=tuple(registry.status()),
        )

    def _open_registry(self, config: AdapterConfig) -> Registry:
        storage = open_storage(config.uri, endpoint_url=config.endpoint_url)
        cache = AdapterCache(
            storage,
            base_hash=self.identity.hash,
            check=self.engine.table.slots.check,
            folder=config.folder,
            memory_bytes=config.cache_mib * 2**20,
            disk_bytes=config.disk_mib * 2**20,
        )
        registry = Registry(storage, cache=cache, most_pinned=config.most_pinned, on_pins=self.engine.pin)
        self.engine.source = registry
        return registry

    def _on_engine_event(self, order: Order, event: Event) -> None:
        """An engine's event as files and numbers. Called from any thread."""
        if order.id not in self._waiting:
            return
        draw, timeline, on_event = self._waiting[order.id]
        match event:
            case Progress():
                on_event(Step(image=event.picture, step=event.step, steps=event.steps))
            case Preview():
                on_event(PreviewFile(image=event.picture, step=event.step, content=encode_preview(event.pixels)))
            case Drawn():
                rendered = self._rendered(draw.request, event, timeline)
                self._finish(order.id, rendered)
                on_event(rendered)
            case Exception():
                self._finish(order.id, event)
                on_event(event)

    def _finish(self, request_id: str, outcome: Rendered | Exception | None) -> None:
        draw, timeline, _ = self._waiting.pop(request_id, (None, None, None))
        if draw is None or timeline is None:
            return
        timeline.close(time.monotonic())
        if self.observe is not None:
            self.observe(draw, timeline, outcome)

    def _rendered(self, request: ResolvedRequest, drawn: Drawn, timeline: Timeline) -> Rendered:
        timeline.begin(Phase.ENCODE, time.monotonic())
        applied = tuple(
            AppliedAdapter(
                name=adapter.manifest.name,
                version=adapter.manifest.version,
                scale=choice.scale,
                sha256=adapter.digest,
                modules=len(adapter.weights.layers),
            )
            for adapter, choice in zip(drawn.adapters, request.adapters, strict=True)
        )
        files = tuple(
            encode_picture(pixels, Recipe.of_image(request, i, self.identity, applied))
            for i, pixels in enumerate(drawn.pictures)
        )
        timeline.end(Phase.ENCODE, time.monotonic())
        timings = Timings(**{f"{phase}_seconds": seconds for phase, seconds in timeline.seconds().items()})
        return Rendered(files=files, prompt=drawn.prompt, adapters=applied, timings=timings)

    def _update_metrics(self) -> None:
        """Bring the engine's gauges and counts up to date."""
        engine, cache = self.engine, self.engine.prompts.cache_use
        metrics.QUEUED.set(engine.waiting)
        metrics.ACTIVE_ROWS.set(engine.active_rows)
        metrics.SLOTS.set(engine.table.slots.count)
        metrics.SLOTS_USED.set(len(engine.occupants))
        for kind, size in memory_of(self.model.device).items():
            metrics.DEVICE_MEMORY.labels(kind).set(size)
        counts = (engine.table.loads, engine.table.evictions, cache.hits, cache.misses)
        hits, misses = metrics.PROMPT_CACHE.labels("hit"), metrics.PROMPT_CACHE.labels("miss")
        counters = (metrics.SLOT_LOADS, metrics.SLOT_EVICTIONS, hits, misses)
        for counter, now, before in zip(counters, counts, self._counted, strict=True):
            counter.inc(now - before)
        self._counted = counts
