"""The engine: the step loop that owns the device. It knows neither HTTP nor JSON.

::

    submit -> prefetch adapters -> encode prompts -> queue -> admission, denoising steps -> decode, write files -> result
              (download threads)   (worker threads)           (step loop)                   (worker threads)

Between two steps the loop admits, cancels and ends requests. A step is one forward for all admitted images of one size: each
image has its own step, schedule, guidance, seed and adapters.

``scheduling`` decides the order of the requests, and states the bounds on their waiting.
"""

import itertools
import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence

from longcat.errors import DeadlineError, EngineError, LithographError, UserError
from longcat.model.device.errors import is_device_lost
from longcat.model.loading import Components
from longcat.sampling import denoise
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots
from service.engine.batch_step import BatchStep
from service.engine.compilation import compile_forwards
from service.engine.encoding.prompt_files import PromptFiles
from service.engine.request_state import OnEvent, RequestState, ScheduledImage
from service.engine.scheduling.admission import ImageAdmission
from service.engine.scheduling.scheduler import Scheduler
from service.engine.slot_table import Adapter, SlotTable
from service.engine.workers import Workers
from service.memory.admission import StepMemory
from service.observability.timeline import Phase, Timeline
from service.wire.errors import wrapped
from service.wire.events import ErrorEvent, StepEvent
from service.wire.messages import GenerateCommand
from service.wire.picture import PictureWriter

log = logging.getLogger("lithograph")


class Engine:
    """The step loop of one device. ``submit``, ``cancel`` and ``pin`` may be called from any thread; ``step`` from one."""

    def __init__(
        self,
        model: Components,
        pictures: PictureWriter,
        *,
        max_rows: int,
        adapter_slots: int = 0,
        adapter_rank: int = 1,
        compiled: bool = False,
        background: bool = True,
        memory: StepMemory | None = None,
        prompt_files: PromptFiles | None = None,
    ) -> None:
        """Allocate the slots; nothing runs yet.

        ``max_rows``: most rows of a forward at the default size (an image with guidance has two), at least 2; larger images
        get fewer. ``memory`` bounds them by bytes, too. ``background``: encode and decode in threads; False for weights that
        are offloaded between devices. ``prompt_files``: embeddings on disk.
        """
        self.model = model
        self.forward = Forward(model.transformer, model.device, compiled=compiled)
        device, dtype = model.device, model.dtype
        slots = AdapterSlots(
            model.transformer, count=adapter_slots, rank=adapter_rank, device=device, dtype=dtype, whole=compiled
        )
        self.slot_table = SlotTable(slots)
        self._model_hash = pictures.model.hash
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.workers = Workers(
            model,
            self.forward,
            slots.conditioner,
            pictures,
            inbox=self._inbox,
            on_failure=self._fail,
            background=background,
            prompt_files=prompt_files,
        )
        self._requests: dict[str, RequestState] = {}
        self._max_rows = max_rows
        self._memory = memory
        self._scheduler = Scheduler(
            max_rows=max_rows, default_size_px=model.flavour.settings.default_size_px, memory=memory
        )
        self._admission = ImageAdmission(self._scheduler, self.slot_table, begin=self._begin, on_failure=self._fail)
        self._arrivals = itertools.count()
        self._step = BatchStep(self.forward, slots, self._scheduler, on_failure=self._fail)

    @property
    def active_rows(self) -> int:
        """Return the rows of all images that are being denoised."""
        return self._scheduler.rows

    @property
    def queued(self) -> int:
        """Return the number of requests with images that wait to be admitted."""
        return sum(1 for state in list(self._requests.values()) if state.waiting_images)

    @property
    def parked(self) -> int:
        """Return the number of parked images."""
        return self._scheduler.parked

    @property
    def parkings(self) -> int:
        """Return the number of times that an image was parked."""
        return self._admission.parkings

    @property
    def out_of_memory(self) -> int:
        """Return the number of forwards that ran out of the device's memory."""
        return self._step.out_of_memory

    @property
    def row_counts(self) -> tuple[int, int]:
        """Return the rows of all steps so far that were computed, and those that were reused."""
        return self._step.computed_rows, self._step.reused_rows

    def steps_left(self) -> dict[str, int]:
        """Return the steps that are left of all images of a request, by its id. Called between steps."""
        left = {}
        for request_id, state in self._requests.items():
            images = (*self._scheduler.images_of(state), *state.parked)
            under_way = sum(image.denoising.steps - image.denoising.step for image in images)
            left[request_id] = len(state.pending) * state.request.denoising_steps + under_way
        return left

    def warm_up(self) -> None:
        """Compile the forwards that requests will need, with ``compiled``: this takes minutes."""
        if self.forward.compiled:
            compile_forwards(self.model, self.forward, self.slot_table.slots, max_rows=self._max_rows)

    def submit(self, command: GenerateCommand, on_event: OnEvent, timeline: Timeline | None = None) -> None:
        """Queue a request. Its events go to ``on_event``, its times to ``timeline``."""
        state = RequestState(
            command=command,
            on_event=on_event,
            timeline=timeline or Timeline(),
            number=next(self._arrivals),
            pending=deque(range(command.request.num_images)),
        )
        state.timeline.begin(Phase.QUEUE, command.submitted_at)
        self._inbox.put(lambda: self._requests.update({command.id: state}))
        try:
            if self._memory is not None:
                self._memory.check(command.request)
        except UserError as error:
            failure = error
            self._inbox.put(lambda: self._fail(state, failure))
            return
        self.workers.prepare(state, self._enqueue)

    def cancel(self, request_id: str) -> None:
        """Make no more steps for a request, and send no more events of it."""
        self._inbox.put(lambda: self._remove_by_id(request_id))

    def pin(self, adapters: Sequence[Adapter]) -> None:
        """Keep these adapters in slots, and no others."""
        self._inbox.put(lambda: self.slot_table.pin(adapters))

    def step(self, wait_seconds: float = 0.0) -> bool:
        """Process what arrived, then make one step; return False if there was nothing to denoise.

        Waits up to ``wait_seconds`` for an arrival if there is nothing to denoise.
        """
        self._read_inbox(wait_seconds)
        self._check_deadlines()
        self.slot_table.load_pinned()
        self._admission.admit()
        if not self._scheduler:
            return False
        self._denoise()
        return True

    def _read_inbox(self, wait_seconds: float) -> None:
        block = not self._scheduler
        try:
            while True:
                self._inbox.get(block=block, timeout=wait_seconds if block else None)()
                block = False
        except queue.Empty:
            pass

    def _enqueue(self, state: RequestState) -> None:
        if not state.is_over:
            self._admission.add(state)

    def _begin(self, state: RequestState, slots: tuple[int, ...]) -> None:
        request, index = state.request, state.pending.popleft()
        begin = time.monotonic()
        state.timeline.end(Phase.QUEUE, begin)  # at the request's first image; for later ones it has ended
        state.timeline.begin(Phase.DENOISE, begin, index)
        assert state.context_1LD is not None
        denoising = denoise.begin(
            self.model,
            self.forward,
            context_1LD=state.context_1LD,
            negative_context_1LD=state.negative_context_1LD,
            height_px=request.height,
            width_px=request.width,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            cfg_renorm=request.cfg_renorm,
            seed=request.seed + index,
            reuse_tolerance=request.reuse_tolerance,
            adapters=state.uses_of(slots),
            updates=self.slot_table.slots.conditioner.updates(state.conditioning_uses),
            source=state.source,
            reference_1NC=state.reference_1NC,
        )
        self._scheduler.add(ScheduledImage(state, index, denoising))

    def _denoise(self) -> None:
        for image in self._step.advance(self._scheduler.next()):
            state = image.state
            if state.is_over:  # another image of the request failed in this step
                continue
            self._report_step(image)
            if image.denoising.is_done:
                self._scheduler.remove(image)
                self.slot_table.release(state.adapters)
                state.timeline.end(Phase.DENOISE, time.monotonic(), image.index)
                self.workers.write_picture(image, self._finish)

    def _report_step(self, image: ScheduledImage) -> None:
        state, denoising = image.state, image.denoising
        if state.command.progress:
            state.on_event(StepEvent(image=image.index, step=denoising.step, steps=denoising.steps))
        if state.is_preview_due(denoising.step):
            self.workers.preview(image)

    def _finish(self, state: RequestState) -> None:
        """End a request whose pictures are all written. In a worker thread: the result does not wait for a step."""
        if state.end():
            self._inbox.put(lambda: self._remove(state))
            state.on_event(state.result(self._model_hash))

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for state in [state for state in self._requests.values() if now > state.command.deadline]:
            self._fail(state, DeadlineError())

    def _fail(self, state: RequestState, error: Exception) -> None:
        """End a request with an error. Raises the error if no later request could succeed in this process."""
        if is_device_lost(error):
            raise error
        if not state.end():
            return
        self._remove(state)
        if isinstance(error, EngineError) or not isinstance(error, LithographError):
            log.error("request %s failed", state.command.request_id, exc_info=error)
        state.on_event(ErrorEvent(wrapped(error)))

    def _remove_by_id(self, request_id: str) -> None:
        if state := self._requests.get(request_id):
            self._remove(state)

    def _remove(self, state: RequestState) -> None:
        state.is_over = True
        state.pending.clear()
        self._requests.pop(state.command.id, None)
        self._admission.discard(state)
        for image in self._scheduler.images_of(state):
            self._scheduler.remove(image)
            self.slot_table.release(state.adapters)
