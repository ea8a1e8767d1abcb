"""The work of a request outside the step loop: fetch its adapters, encode its prompts and its picture, decode its images."""

import copy
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from longcat.errors import LithographError
from longcat.model.loading import Components
from longcat.sampling import denoise
from longcat.sampling.denoise import Denoising
from longcat.sampling.forward import Forward, schedule
from longcat.sampling.updates.conditioner import Conditioner
from service.engine.encoding.prompt_encoder import PromptEncoder
from service.engine.encoding.prompt_files import PromptFiles
from service.engine.encoding.source_encoder import SourceEncoder
from service.engine.inline_executor import InlineExecutor
from service.engine.request_state import RequestState, ScheduledImage
from service.engine.sampling_defaults import with_defaults_of
from service.engine.slot_table import Adapter
from service.observability.timeline import Phase
from service.wire.events import AcceptedEvent, Picture, PreviewEvent
from service.wire.picture import PictureWriter, encode_preview

_PREVIEW_PX = 256
"""Longest side of a preview, at most."""
_WORKER_THREADS = 2
"""Prompt encoding and decoding: one request's decode overlaps with another's prompt; more would contend for the device."""
_DOWNLOAD_THREADS = 32
"""Adapter prefetch, in threads of its own: a download can be slow, and other requests must not wait for it. Few of them do
more than wait: ``service.adapters.downloads`` bounds the files that are read into memory at a time."""

OnRequest = Callable[[RequestState], None]


class AdapterSource(Protocol):
    """Source of the adapters that requests name."""

    def resolve(self, reference: str) -> Adapter:
        """Return the version that a name means now. May be slow; raises ``AdapterError`` or ``StorageError``."""


class Workers:
    """The threads beside the step loop. An exception in one fails its request alone."""

    def __init__(
        self,
        model: Components,
        forward: Forward,
        conditioner: Conditioner,
        pictures: PictureWriter,
        *,
        inbox: queue.SimpleQueue[Callable[[], None]],
        on_failure: Callable[[RequestState, Exception], None],
        background: bool,
        prompt_files: PromptFiles | None,
    ) -> None:
        """Start without work.

        ``inbox``: calls that the step loop makes between two steps; ``on_failure`` is one. ``background``: encode and decode
        in threads; False lets the loop do it.
        """
        self.prompts = PromptEncoder(model, prompt_files)
        self._decoding: AbstractContextManager[object] = (
            nullcontext() if model.device.type == "cpu" else threading.Lock()
        )
        """One image at a time in the VAE of a GPU, whose memory two would need."""
        self.sources = SourceEncoder(model, self._decoding)
        self.source: AdapterSource | None = None
        """Set before the first request that names an adapter."""
        self._model = model
        self._forward = forward
        self._conditioner = conditioner
        self._pictures = pictures
        self._inbox = inbox
        self._on_failure = on_failure
        self._workers: Executor = (
            ThreadPoolExecutor(_WORKER_THREADS, "workers") if background else InlineExecutor(inbox)
        )
        self._downloads = ThreadPoolExecutor(_DOWNLOAD_THREADS, "downloads")

    def prepare(self, state: RequestState, on_prepared: OnRequest) -> None:
        """Fetch a request's adapters, then encode its prompts; the loop calls ``on_prepared`` afterwards."""
        if state.request.adapters:
            self._submit(self._downloads, state, self._fetch_adapters, on_prepared)
        else:
            _accept(state)
            self._submit(self._workers, state, self._encode, on_prepared)

    def preview(self, image: ScheduledImage) -> None:
        """Decode a small preview of an unfinished image, unless its previous preview is still being decoded."""
        state = image.state
        if image.index not in state.previewing:
            state.previewing.add(image.index)
            self._submit(self._workers, state, self._decode_preview, image.index, copy.copy(image.denoising))

    def write_picture(self, image: ScheduledImage, on_last: OnRequest) -> None:
        """Decode a denoised image and encode its file. The request's last file calls ``on_last``, in the worker thread."""
        self._submit(self._workers, image.state, self._write_picture, image, on_last)

    def _submit(self, pool: Executor, state: RequestState, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            if state.is_over:
                return
            try:
                work(state, *arguments)
            except Exception as error:  # any: the pool would drop it silently, and the request would never end
                failure = error
                self._inbox.put(lambda: self._on_failure(state, failure))

        pool.submit(run)

    def _fetch_adapters(self, state: RequestState, on_prepared: OnRequest) -> None:
        state.adapters = tuple(self._resolve(i, choice.name) for i, choice in enumerate(state.request.adapters))
        state.request = with_defaults_of([adapter.manifest for adapter in state.adapters], state.command)
        _accept(state)
        self._submit(self._workers, state, self._encode, on_prepared)

    def _resolve(self, index: int, reference: str) -> Adapter:
        assert self.source is not None  # without storage, requests with adapters fail validation
        try:
            return self.source.resolve(reference)
        except LithographError as error:
            raise error.renamed("adapter", f"adapters.{index}.name") from error

    def _encode(self, state: RequestState, on_prepared: OnRequest) -> None:
        """Encode a request's prompts, and its picture."""
        request, timeline = state.request, state.timeline
        begin = time.monotonic()
        timeline.end(Phase.QUEUE, begin)
        timeline.begin(Phase.TEXT, begin)
        state.prompt = self.prompts.rewrite(request.prompt) if request.rewrite_prompt else request.prompt
        updates = self._conditioner.updates(state.conditioning_uses)
        picture, edit = state.command.picture, request.edit
        seen = picture if edit is not None and edit.is_reference else None
        state.context_1LD = self._forward.context(self.prompts.encode(state.prompt, seen), updates)
        if request.guidance_scale > 1:
            negative = self.prompts.encode(request.negative_prompt, seen)
            state.negative_context_1LD = self._forward.context(negative, updates)
        if picture is not None and edit is not None:
            source = self.sources.encode(picture, strength=edit.strength)
            state.source = source if edit.is_start else None
            state.reference_1NC = source.clean_1NC if edit.is_reference else None
        # Fills the cache of modulations, so that the step loop does not compute them between two steps.
        schedule(
            self._model,
            self._forward,
            height_px=request.height,
            width_px=request.width,
            steps=request.steps,
            strength=1.0 if edit is None else edit.strength,
            updates=updates,
        )
        end = device_time(self._model.device)
        timeline.end(Phase.TEXT, end)
        timeline.begin(Phase.QUEUE, end)
        self._inbox.put(lambda: on_prepared(state))

    @torch.no_grad()
    def _decode_preview(self, state: RequestState, index: int, denoising: Denoising) -> None:
        shrink = 2
        while max(denoising.height_px, denoising.width_px) / shrink > _PREVIEW_PX:
            shrink *= 2
        content = encode_preview(denoise.preview(self._model.vae, denoising, shrink=shrink))
        state.previewing.discard(index)
        if not state.is_over:
            state.on_event(PreviewEvent(image=index, step=denoising.step, content=content))

    def _write_picture(self, state: RequestState, image: ScheduledImage, on_last: OnRequest) -> None:
        index, timeline = image.index, state.timeline
        timeline.begin(Phase.DECODE, device_time(self._model.device), index)
        with self._decoding:
            pixels = denoise.decode(self._model.vae, image.denoising)
        decoded = device_time(self._model.device)
        timeline.end(Phase.DECODE, decoded, index)
        timeline.begin(Phase.ENCODE, decoded, index)
        source = state.command.picture
        parent = None if source is None else source.manifest
        content = self._pictures.file_of(pixels, state.request, index, state.applied, parent=parent)
        timeline.end(Phase.ENCODE, time.monotonic(), index)
        if state.add_picture(index, Picture(seed=state.request.seed + index, content=content)):
            on_last(state)


def device_time(device: torch.device) -> float:
    """Return ``time.monotonic()``, once the device has finished all work submitted to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.monotonic()


def _accept(state: RequestState) -> None:
    if state.command.stream:
        state.on_event(AcceptedEvent())
