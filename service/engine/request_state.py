"""A request on its way through the engine, and its images that are being denoised."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from longcat.sampling.denoise import Denoising
from longcat.sampling.encoding.source import EncodedSource
from longcat.sampling.slots import SlotUse
from longcat.sampling.updates.conditioner import AdapterUse
from service.engine.slot_table import Adapter
from service.observability.timeline import Timeline
from service.wire.events import Event, Picture, ResultEvent
from service.wire.messages import GenerateCommand
from service.wire.picture import MEDIA_TYPES
from service.wire.schema import AppliedAdapter, ResolvedRequest, Timings, rank_of

Size = tuple[int, int]
"""Height and width in px."""
OnEvent = Callable[[Event], None]
"""Called from any thread. ``ResultEvent`` or ``ErrorEvent`` is the last event; a cancelled request has none."""


@dataclass(kw_only=True, eq=False)
class RequestState:
    """A request, and what the engine has done for it so far."""

    command: GenerateCommand
    on_event: OnEvent
    timeline: Timeline
    number: int
    """Number in the order of arrival."""
    request: ResolvedRequest = field(init=False)
    """The command's request, once its adapters are known with their defaults."""
    prompt: str = ""
    """The prompt as encoded: the rewritten one with ``rewrite_prompt``."""
    context_1LD: Tensor | None = None
    """The projected prompt, once it is prepared."""
    negative_context_1LD: Tensor | None = None
    """None without guidance."""
    source: EncodedSource | None = None
    """The encoded picture that its images start from, once it is prepared; None for those that start from noise alone."""
    reference_1NC: Tensor | None = None
    """Latents of the picture that the model sees beside its images; None for a model that does not edit."""
    adapters: tuple[Adapter, ...] = ()
    """Adapters in the order of ``request.adapters``."""
    pending: deque[int] = field(default_factory=deque)
    """Images that are not admitted yet."""
    parked: deque["ScheduledImage"] = field(default_factory=deque)
    """Images that were admitted, and have to be admitted again."""
    pictures: dict[int, Picture] = field(default_factory=dict)
    """Finished files by image."""
    previewing: set[int] = field(default_factory=set)
    """Images whose preview is being decoded: one at a time each."""
    is_over: bool = False
    """True once the request has ended or is cancelled: no more steps and no more events."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.request = self.command.request

    @property
    def size(self) -> Size:
        """Height and width of its images."""
        return self.request.height, self.request.width

    @property
    def rows_per_image(self) -> int:
        """Rows of a forward that each image takes: two with guidance."""
        return 2 if self.negative_context_1LD is not None else 1

    @property
    def pixel_steps_per_image(self) -> int:
        """The cost of each image."""
        return self.request.pixels_per_row * self.rows_per_image * self.request.denoising_steps

    @property
    def key(self) -> str | None:
        """Name of the API key whose share its images take."""
        return self.command.key

    @property
    def rank(self) -> int:
        """The place of its priority: images of the highest are admitted first."""
        return rank_of(self.command.priority)

    @property
    def waiting_images(self) -> int:
        """Images that wait to be admitted, for the first time or again."""
        return len(self.pending) + len(self.parked)

    @property
    def conditioning_uses(self) -> tuple[AdapterUse, ...]:
        """The adapters that may change the layers of its times and its prompts."""
        return tuple(
            AdapterUse(adapter.digest, adapter.weights, choice.scale)
            for adapter, choice in zip(self.adapters, self.request.adapters, strict=True)
        )

    def uses_of(self, slots: Sequence[int]) -> tuple[SlotUse, ...]:
        """Return the slots of its adapters with their scales."""
        return tuple((slot, choice.scale) for slot, choice in zip(slots, self.request.adapters, strict=True))

    @property
    def applied(self) -> tuple[AppliedAdapter, ...]:
        """The adapters as the result and the recipe name them."""
        return tuple(
            AppliedAdapter(
                name=adapter.manifest.name,
                version=adapter.manifest.version,
                scale=choice.scale,
                sha256=adapter.digest,
                modules=len(adapter.weights.layers),
            )
            for adapter, choice in zip(self.adapters, self.request.adapters, strict=True)
        )

    def end(self) -> bool:
        """Mark the request as over; return False if it was already.

        Its deadline may pass in the step loop while a worker thread writes its last picture.
        """
        with self._lock:
            is_first, self.is_over = not self.is_over, True
        return is_first

    def add_picture(self, index: int, picture: Picture) -> bool:
        """Keep the file of an image; return True if it is the request's last one."""
        with self._lock:
            self.pictures[index] = picture
            return len(self.pictures) == self.request.num_images

    def is_preview_due(self, step: int) -> bool:
        """Return True if ``previews`` spread over the steps put one after this step; never after the last."""
        steps, parts = self.request.denoising_steps, self.command.previews + 1
        return step < steps and step * parts // steps > (step - 1) * parts // steps

    def result(self, model_hash: str) -> ResultEvent:
        """Return the last event of a request whose pictures are all finished."""
        seconds = self.timeline.seconds()
        return ResultEvent(
            request_id=self.command.request_id,
            model_hash=model_hash,
            prompt=self.prompt,
            request=self.request,
            adapters=self.applied,
            timings=Timings(**{f"{phase}_seconds": phase_seconds for phase, phase_seconds in seconds.items()}),
            media_type=MEDIA_TYPES[self.request.output_format],
            images=tuple(self.pictures[image] for image in range(self.request.num_images)),
        )


@dataclass(eq=False)
class ScheduledImage:
    """One image that takes part in the steps, or is parked."""

    state: RequestState
    index: int
    denoising: Denoising
    parkings: int = 0
    """Times that it was parked."""
