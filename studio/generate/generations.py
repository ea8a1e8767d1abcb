"""Generations: requests to the service, followed step by step, and their results.

A generation belongs to the studio and not to a page: every page shows all of them.
"""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from lithograph.client.errors import RequestError, ServiceError
from lithograph.client.protocol import PreviewEvent, ResultEvent, StepEvent
from longcat.errors import LithographError
from studio.connection.service_connection import ConnectionState, ServiceConnection
from studio.generate.gallery import Gallery, GalleryPicture, new_id
from studio.generate.recipe import PictureRecipe, ScaledAdapter
from studio.web.error_pages import error_of
from studio.web.errors import MissingPageError

_KEPT_AFTER_END = 16
"""Generations that are over and still kept, for a page whose stream was interrupted for a moment."""
_POLL_SECONDS = 0.25
"""Interval of checks while the model loads."""


class GenerationState(StrEnum):
    """State of a generation."""

    WAITING = "waiting"
    """Until the model is loaded, and then until the first step."""
    GENERATING = "generating"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(kw_only=True)
class ImageProgress:
    """Progress of one picture of a generation."""

    step: int = 0
    preview: str = ""
    """The latest preview: a small JPEG in base64; empty before the first."""


@dataclass(kw_only=True)
class Generation:
    """One request for pictures."""

    id: str
    recipe: PictureRecipe
    progress: list[ImageProgress]
    compares: str | None = None
    """Id of the picture with adapters that the result is compared with."""
    state: GenerationState = GenerationState.WAITING
    steps: int = 0
    """Denoising steps of each picture; 0 before the first step event."""
    pictures: list[GalleryPicture] = field(default_factory=list)
    error: LithographError | None = None
    revision: int = 0
    """Number of changes so far."""

    @property
    def is_over(self) -> bool:
        """Return True in a final state."""
        return self.state in (GenerationState.DONE, GenerationState.FAILED, GenerationState.CANCELLED)

    @property
    def steps_made(self) -> int:
        """Return the steps made so far, of all pictures."""
        return sum(picture.step for picture in self.progress)

    @property
    def all_steps(self) -> int:
        """Return the steps of all pictures, at least 1."""
        return max(self.steps * len(self.progress), 1)


class Generations:
    """All generations of this studio, newest first."""

    def __init__(self, service: ServiceConnection, gallery: Gallery) -> None:
        self._service = service
        self._gallery = gallery
        self._generations: dict[str, Generation] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        """Set at the next change, which replaces it with a new event."""

    def start(self, recipe: PictureRecipe, *, compares: str | None = None) -> Generation:
        """Generate the pictures of a recipe; they are added to the gallery."""
        progress = [ImageProgress() for _ in range(recipe.num_images)]
        generation = Generation(id=uuid.uuid4().hex, recipe=recipe, progress=progress, compares=compares)
        self._generations[generation.id] = generation
        task = asyncio.create_task(self._generate(generation))
        self._tasks[generation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(generation.id))
        self._remove_oldest()
        return generation

    def active(self) -> list[Generation]:
        """Return the generations that are not over, newest first."""
        return [generation for generation in reversed(self._generations.values()) if not generation.is_over]

    def get(self, generation_id: str) -> Generation:
        """Return one generation. Raises ``MissingPageError``."""
        if generation_id not in self._generations:
            raise MissingPageError("generation_over", "the generation has ended")
        return self._generations[generation_id]

    def comparing(self, picture_id: str) -> Generation | None:
        """Return the generation under way that will be compared with a picture, if there is one."""
        return next((generation for generation in self.active() if generation.compares == picture_id), None)

    def cancel(self, generation_id: str) -> None:
        """Cancel one; the service stops denoising it."""
        if (task := self._tasks.get(self.get(generation_id).id)) is not None:
            task.cancel()

    async def changes(self) -> AsyncIterator[Generation]:
        """Yield every generation as it is now, and again at each of its changes."""
        seen: dict[str, int] = {}
        while True:
            changed = self._changed
            for generation in list(self._generations.values()):
                if seen.get(generation.id) != generation.revision:
                    seen[generation.id] = generation.revision
                    yield generation
            await changed.wait()

    async def close(self) -> None:
        """Cancel all."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, generation: Generation) -> None:
        try:
            await self._follow(generation)
            self._update(generation, GenerationState.DONE)
        except asyncio.CancelledError:
            self._update(generation, GenerationState.CANCELLED)
            raise
        except Exception as error:  # any: no one awaits this task, and the page must show that it ended
            generation.error = error_of(error)
            self._update(generation, GenerationState.FAILED)

    async def _follow(self, generation: Generation) -> None:
        """Generate, and once more if the service ended meanwhile and restarts.

        Only once more: the request itself may be the reason for the end.
        """
        await self._wait_for_model()
        try:
            await self._stream(generation)
        except RequestError:
            raise
        except ServiceError:
            await self._service.poll()
            if self._service.state is not ConnectionState.STARTING:
                raise
            generation.steps = 0
            generation.progress[:] = [ImageProgress() for _ in generation.progress]
            self._update(generation, GenerationState.WAITING)
            await self._wait_for_model()
            await self._stream(generation)

    async def _wait_for_model(self) -> None:
        while self._service.state is ConnectionState.STARTING:
            await asyncio.sleep(_POLL_SECONDS)

    async def _stream(self, generation: Generation) -> None:
        recipe = generation.recipe
        begun = asyncio.get_running_loop().time()
        stream = self._service.client.stream(recipe.prompt, previews=True, **recipe.options())
        async with aclosing(stream):
            async for event in stream:
                match event:
                    case StepEvent():
                        generation.steps = event.steps
                        generation.progress[event.image].step = event.step
                        self._update(generation, GenerationState.GENERATING)
                    case PreviewEvent():
                        generation.progress[event.image].preview = base64.b64encode(event.content).decode("ascii")
                        self._update(generation, GenerationState.GENERATING)
                    case ResultEvent():
                        await self._keep(generation, event, asyncio.get_running_loop().time() - begun)

    async def _keep(self, generation: Generation, result: ResultEvent, seconds: float) -> None:
        """Add the pictures to the gallery, the first one as the newest."""
        request, now = result.request, datetime.now(UTC)
        adapters = tuple(ScaledAdapter(name=adapter.reference, scale=adapter.scale) for adapter in result.adapters)
        info = self._service.info or {"model": {"flavour": ""}}
        for i, image in enumerate(result.images):
            created = now - timedelta(microseconds=i)
            picture = GalleryPicture(
                id=new_id(created),
                created=created,
                recipe=PictureRecipe(
                    prompt=request.prompt,
                    negative_prompt=request.negative_prompt,
                    width=request.width,
                    height=request.height,
                    steps=request.steps,
                    guidance_scale=request.guidance_scale,
                    seed=image.seed,
                    adapters=adapters,
                ),
                flavour=info["model"]["flavour"],
                model_hash=result.model_hash,
                seconds=seconds,
                effective_prompt=result.prompt,
            )
            await asyncio.to_thread(self._gallery.add, image.content, picture)
            generation.pictures.append(picture)
        if generation.compares is not None:
            await asyncio.to_thread(self._gallery.pair, generation.compares, generation.pictures[0].id)

    def _update(self, generation: Generation, state: GenerationState) -> None:
        generation.state = state
        generation.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _remove_oldest(self) -> None:
        over = [generation.id for generation in self._generations.values() if generation.is_over]
        for generation_id in over[: max(0, len(over) - _KEPT_AFTER_END)]:
            del self._generations[generation_id]
