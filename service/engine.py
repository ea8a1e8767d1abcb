"""The engine: one loop that owns the device. It knows neither HTTP nor the request schema.

An order is prepared in background threads (adapters fetched, prompts encoded), waits until there is room for its pictures,
and is finished in background threads again (decoded, and whatever the listener does with it). Between steps the loop admits,
cancels and finishes; a step is one forward for all pictures of one size, each at its own step of its own schedule, with its
own adapters.

What waits, and for how long at most:

- Sizes take turns: between two steps of a picture there is at most one forward for each other size being drawn.
- Pictures of one size that are prepared are admitted in the order of arrival, as rows of the forward become free.
- A picture whose adapters find no slot lets no later picture with adapters pass, so that slots become free once the pictures
  that hold them are finished; later pictures without adapters may pass it, until it has its slots: then it is first again.
"""

import copy
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Protocol

import torch

from longcat import denoise
from longcat.denoise import Denoising
from longcat.errors import DeadlineError, EngineError
from longcat.forward import Forward
from longcat.loading import Components
from longcat.slots import AdapterSlots
from service.inline_executor import InlineExecutor
from service.orders import Drawn, Listener, Order, Preview, Progress
from service.prompts import Prompts
from service.slots import Adapter, Occupant, SlotTable
from service.timeline import Phase, StepInterval
from service.turns import Job, Running, Size, Turns
from service.warm_up import compile_forwards

log = logging.getLogger("lithograph")

_PREVIEW_PX = 256
"""Longest side of a preview, at most."""


class AdapterSource(Protocol):
    """Where orders' adapters come from."""

    def resolve(self, reference: str) -> Adapter:
        """The version that a name means now. May take a while; raises ``AdapterError`` or ``StorageError``."""


class Engine:
    """Draws orders together. ``submit`` and ``cancel`` may be called from any thread; ``step`` from one."""

    def __init__(
        self,
        model: Components,
        listener: Listener,
        *,
        max_rows: int,
        adapter_slots: int = 0,
        adapter_rank: int = 1,
        compiled: bool = False,
        background: bool = True,
    ) -> None:
        """Nothing runs yet.

        ``max_rows``: most rows of a forward at the default size (a picture has two, with guidance), at least 2; larger
        pictures get fewer. ``background``: prepare and decode in threads; not with weights that move between devices.
        """
        self.model = model
        self.prompts = Prompts(model)
        self.forward = Forward(model.transformer, compiled=compiled)
        self.source: AdapterSource | None = None
        """Set before the first order that names an adapter."""
        slots = AdapterSlots(
            model.transformer,
            count=adapter_slots,
            rank=adapter_rank,
            device=model.device,
            dtype=model.dtype,
            whole=compiled,
        )
        self.table = SlotTable(slots)
        self._listener = listener
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._workers: Executor = ThreadPoolExecutor(2, "workers") if background else InlineExecutor(self._inbox)
        # A download can take long, and pictures that need none must not wait for it.
        self._downloads = ThreadPoolExecutor(4, "downloads")
        self._jobs: dict[str, Job] = {}
        self._waiting: list[Job] = []
        self._max_rows = max_rows
        self._turns = Turns(max_rows=max_rows, default_size_px=model.flavour.settings.default_size_px)
        self._arrivals = itertools.count()
        self._ending = threading.Lock()

    @property
    def occupants(self) -> tuple[Occupant, ...]:
        """Which adapters sit in slots."""
        return self.table.occupants

    @property
    def active_rows(self) -> int:
        """Rows of all pictures that are being denoised."""
        return self._turns.rows

    @property
    def waiting(self) -> int:
        """Orders that have pictures which are not admitted yet."""
        return sum(1 for job in list(self._jobs.values()) if job.pending)

    def warm_up(self) -> None:
        """Compile what requests will need, if anything is compiled: minutes."""
        if self.forward.compiled:
            compile_forwards(self.model, self.forward, self.table.slots, max_rows=self._max_rows)

    def submit(self, order: Order) -> None:
        """Take an order in."""
        job = Job(order=order, number=next(self._arrivals), pending=deque(range(len(order.seeds))))
        order.timeline.begin(Phase.QUEUE, order.submitted_at)
        self._inbox.put(lambda: self._jobs.update({order.id: job}))
        if order.adapters:
            self._in_background(self._downloads, job, self._fetch)
        else:
            self._in_background(self._workers, job, self._prepare)

    def cancel(self, order_id: str) -> None:
        """Make no more steps for an order, and say nothing more about it."""
        self._inbox.put(lambda: self._drop(order_id))

    def pin(self, adapters: Sequence[Adapter]) -> None:
        """Keep these adapters in slots, and no others. From any thread."""
        self._inbox.put(lambda: self.table.pin(adapters))

    def step(self, wait_seconds: float = 0.0) -> bool:
        """Take in what arrived (waiting for it if there is nothing to draw), then make one step; whether one was made."""
        self._read_inbox(wait_seconds)
        self._check_deadlines()
        self._admit()
        if not self._turns:
            return False
        self._denoise()
        return True

    def _read_inbox(self, wait_seconds: float) -> None:
        block = not self._turns
        try:
            while True:
                self._inbox.get(block=block, timeout=wait_seconds if block else None)()
                block = False
        except queue.Empty:
            pass

    def _in_background(self, pool: Executor, job: Job, work: Callable[..., None], *arguments: Any) -> None:
        """Do a part of a job outside the loop; if it fails, the job fails, alone."""

        def run() -> None:
            if job.over:
                return
            try:
                work(job, *arguments)
            except Exception as error:  # whatever happened to it
                failure = error
                self._inbox.put(lambda: self._fail(job, failure))

        pool.submit(run)

    def _fetch(self, job: Job) -> None:
        if self.source is None:
            raise EngineError("adapters were ordered of an engine that has no source of them")
        job.adapters = tuple(self.source.resolve(use.reference) for use in job.order.adapters)
        self._in_background(self._workers, job, self._prepare)

    def _prepare(self, job: Job) -> None:
        order, timeline = job.order, job.order.timeline
        begin = time.monotonic()
        timeline.end(Phase.QUEUE, begin)
        timeline.begin(Phase.TEXT, begin)
        job.prompt = self.prompts.rewrite(order.prompt) if order.rewrite_prompt else order.prompt
        job.embeds = self.prompts.encode(job.prompt)
        job.negative_embeds = self.prompts.encode(order.negative_prompt) if order.guidance_scale > 1 else None
        end = self._now()
        timeline.end(Phase.TEXT, end)
        timeline.begin(Phase.QUEUE, end)
        self._inbox.put(lambda: self._queue(job))

    def _queue(self, job: Job) -> None:
        if not job.over:
            self._waiting.append(job)
            self._waiting.sort(key=lambda waiting: waiting.number)

    def _admit(self) -> None:
        """Start every picture for which there is room; see the module's docstring for who goes first."""
        self.table.seat_pinned()
        full: set[Size] = set()
        slots_wanted = False
        for job in list(self._waiting):
            while job.pending and job.size not in full and not (job.adapters and slots_wanted):
                if not self._turns.has_room(job.size, job.rows_each):
                    full.add(job.size)
                elif (slots := self.table.acquire(job.adapters)) is None:
                    slots_wanted = True
                else:
                    self._begin_or_fail(job, slots)
            if not job.pending and job in self._waiting:
                self._waiting.remove(job)

    def _begin_or_fail(self, job: Job, slots: tuple[int, ...]) -> None:
        try:
            self._begin(job, slots)
        except Exception as error:  # out of memory, say: the others are still to be drawn
            self.table.release(job.adapters)
            self._fail(job, error)

    def _begin(self, job: Job, slots: tuple[int, ...]) -> None:
        order, index = job.order, job.pending.popleft()
        begin = time.monotonic()
        order.timeline.end(Phase.QUEUE, begin)  # of its first picture; later ones find it ended
        order.timeline.begin(Phase.DENOISE, begin, index)
        assert job.embeds is not None
        picture = denoise.start(
            self.model,
            self.forward,
            embeds_1LJ=job.embeds,
            negative_embeds_1LJ=job.negative_embeds,
            height_px=order.height_px,
            width_px=order.width_px,
            steps=order.steps,
            guidance_scale=order.guidance_scale,
            cfg_renorm=order.cfg_renorm,
            seed=order.seeds[index],
        )
        picture.adapters = tuple((slot, use.scale) for slot, use in zip(slots, order.adapters, strict=True))
        self._turns.add(Running(job, index, picture))

    def _denoise(self) -> None:
        for running in self._advance(self._turns.next()):
            job = running.job
            if job.over:  # another of its pictures failed, and took this one with it
                continue
            self._report(running)
            if running.picture.is_done:
                self._turns.remove(running)
                self.table.release(job.adapters)
                job.order.timeline.end(Phase.DENOISE, time.monotonic(), running.index)
                self._in_background(self._workers, job, self._decode, running)

    def _advance(self, group: list[Running]) -> list[Running]:
        """Advance pictures together; if that fails, each alone, so that one fails without the others."""
        begin = time.monotonic()
        try:
            denoise.advance(self.forward, [running.picture for running in group], self.table.slots)
            _note_step(group, begin, self._now())  # on a GPU, not before the step is made
            return group
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0].job, error)
                return []
            log.warning("a step of %d pictures failed (%s); making it one by one", len(group), error)
            return [advanced for running in group for advanced in self._advance([running])]

    def _report(self, running: Running) -> None:
        job, picture = running.job, running.picture
        if job.order.progress:
            self._listener(job.order, Progress(picture=running.index, step=picture.step, steps=picture.steps))
        is_wanted = job.order.is_previewed(picture.step, picture.steps) and not picture.is_done
        if is_wanted and running.index not in job.previewing:
            job.previewing.add(running.index)
            self._in_background(self._workers, job, self._preview, running.index, copy.copy(picture))

    @torch.no_grad()
    def _preview(self, job: Job, index: int, picture: Denoising) -> None:
        shrink = 2
        while max(picture.height_px, picture.width_px) / shrink > _PREVIEW_PX:
            shrink *= 2
        pixels = denoise.preview(self.model.vae, picture, shrink=shrink)
        job.previewing.discard(index)
        if not job.over:
            self._listener(job.order, Preview(picture=index, step=picture.step, pixels=pixels))

    def _decode(self, job: Job, running: Running) -> None:
        job.order.timeline.begin(Phase.DECODE, self._now(), running.index)
        pixels = denoise.decode(self.model.vae, running.picture)
        with self._ending:
            job.pixels[running.index] = pixels
            job.order.timeline.end(Phase.DECODE, self._now(), running.index)
            is_last = len(job.pixels) == len(job.order.seeds)
        if is_last:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        if not self._end(job):
            return
        self._inbox.put(lambda: self._forget(job))
        drawn = Drawn(
            pictures=tuple(job.pixels[i] for i in range(len(job.order.seeds))),
            prompt=job.prompt,
            adapters=job.adapters,
        )
        self._listener(job.order, drawn)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs.values() if job.order.deadline is not None and now > job.order.deadline]:
            self._fail(job, DeadlineError())

    def _fail(self, job: Job, error: Exception) -> None:
        if self._end(job):
            self._forget(job)
            self._listener(job.order, error)

    def _end(self, job: Job) -> bool:
        """Mark a job as over; False if it was already: it may be decoded in one thread while its time is over in another."""
        with self._ending:
            is_first, job.over = not job.over, True
        return is_first

    def _drop(self, order_id: str) -> None:
        if job := self._jobs.get(order_id):
            self._forget(job)

    def _forget(self, job: Job) -> None:
        job.over = True
        job.pending.clear()
        self._jobs.pop(job.order.id, None)
        if job in self._waiting:
            self._waiting.remove(job)
        for running in self._turns.of(job):
            self._turns.remove(running)
            self.table.release(job.adapters)

    def _now(self) -> float:
        """Seconds on a clock, once the device has done what it was told so far."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        elif self.model.device.type == "mps":
            torch.mps.synchronize()
        return time.monotonic()


def _note_step(group: Sequence[Running], begin: float, end: float) -> None:
    rows = sum(len(running.picture.contexts) for running in group)
    for running in group:
        timeline = running.job.order.timeline
        if timeline.keeps_steps:
            timeline.steps.append(
                StepInterval(begin=begin, end=end, picture=running.index, step=running.picture.step, rows=rows)
            )
