"""Generations: requests to the service, followed step by step, and their results.

A generation belongs to the studio and not to a page: every page shows all of them.
"""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from lithograph.client.errors import ServiceError
from lithograph.client.protocol import PreviewEvent, ResolvedEdit, ResultEvent, StepEvent
from longcat.errors import LithographError
from studio.connection.service_connection import ServiceConnection
from studio.generate.gallery import Gallery, GalleryPicture, new_id
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import EditMargins, PictureEdit, PictureRecipe, ScaledAdapter
from studio.web.error_pages import error_of
from studio.web.errors import MissingPageError

_REMEMBERED = 16
"""Generations that are over and kept, so that a page that reconnects receives their events."""


class GenerationState(StrEnum):
    """State of a generation."""

    WAITING = "waiting"
    """For the model to be loaded, or for its first step."""
    DENOISING = "denoising"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(kw_only=True)
class ImageProgress:
    """Progress of one picture of a generation."""

    step: int = 0
    preview: str = ""
    """A small JPEG of the unfinished picture, in base64; empty before the first."""


@dataclass(kw_only=True)
class Generation:
    """One request for pictures."""

    id: str
    recipe: PictureRecipe
    progress: list[ImageProgress]
    compares: str | None = None
    """Id of the picture that the result is compared with."""
    state: GenerationState = GenerationState.WAITING
    steps: int = 0
    """Steps of each picture; 0 before the first step."""
    pictures: list[GalleryPicture] = field(default_factory=list)
    error: LithographError | None = None
    revision: int = 0
    """Counts changes."""

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
        self._news = asyncio.Event()
        """Set at the next change, and then another one."""

    def start(self, recipe: PictureRecipe, *, compares: str | None = None) -> Generation:
        """Start the generation of a recipe; its pictures are added to the gallery.

        Raises ``FormError`` for a recipe without a picture if the model needs one.
        """
        GenerationLimits.of(self._service.info).check_picture(recipe)
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
        """Return a generation. Raises ``MissingPageError``."""
        if generation_id not in self._generations:
            raise MissingPageError("generation_over", "the generation has ended")
        return self._generations[generation_id]

    def comparing(self, picture_id: str) -> Generation | None:
        """Return the generation under way that will be compared with a picture, if there is one."""
        return next((generation for generation in self.active() if generation.compares == picture_id), None)

    def cancel(self, generation_id: str) -> None:
        """Cancel a generation; the service makes no more steps of it."""
        if (task := self._tasks.get(self.get(generation_id).id)) is not None:
            task.cancel()

    async def changes(self) -> AsyncIterator[Generation]:
        """Yield every generation, and again after each change."""
        seen: dict[str, int] = {}
        while True:
            news = self._news
            for generation in list(self._generations.values()):
                if seen.get(generation.id) != generation.revision:
                    seen[generation.id] = generation.revision
                    yield generation
            await news.wait()

    async def close(self) -> None:
        """Cancel all generations."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _generate(self, generation: Generation) -> None:
        try:
            await self._follow(generation)
            self._tell(generation, GenerationState.DONE)
        except asyncio.CancelledError:
            self._tell(generation, GenerationState.CANCELLED)
            raise
        except Exception as error:  # any: no one awaits this task, and the page has to show that it ended
            generation.error = error_of(error)
            self._tell(generation, GenerationState.FAILED)

    async def _follow(self, generation: Generation) -> None:
        """Generate, and once more if the service ended and restarts: a request that ends it each time is not repeated."""
        await self._service.wait_for_model()
        try:
            await self._draw(generation)
        except ServiceError as error:
            if not await self._service.is_restarting_after(error):
                raise
            generation.steps = 0
            generation.progress[:] = [ImageProgress() for _ in generation.progress]
            self._tell(generation, GenerationState.WAITING)
            await self._service.wait_for_model()
            await self._draw(generation)

    async def _draw(self, generation: Generation) -> None:
        recipe = generation.recipe
        begun = asyncio.get_running_loop().time()
        pictures = {} if recipe.edit is None else recipe.edit.pictures(self._gallery.sources.path)
        stream = self._service.client.stream(recipe.prompt, previews=True, **recipe.options(), **pictures)
        async with aclosing(stream):
            async for event in stream:
                match event:
                    case StepEvent():
                        generation.steps = event.steps
                        generation.progress[event.image].step = event.step
                        self._tell(generation, GenerationState.DENOISING)
                    case PreviewEvent():
                        generation.progress[event.image].preview = base64.b64encode(event.content).decode("ascii")
                        self._tell(generation, GenerationState.DENOISING)
                    case ResultEvent():
                        await self._keep(generation, event, asyncio.get_running_loop().time() - begun)

    async def _keep(self, generation: Generation, drawn: ResultEvent, seconds: float) -> None:
        """Put the pictures into the gallery."""
        for picture, content in pictures_of(drawn, self._service.model, seconds):
            await asyncio.to_thread(self._gallery.add, content, picture)
            generation.pictures.append(picture)
        if generation.compares is not None:
            await asyncio.to_thread(self._gallery.pair, generation.compares, generation.pictures[0].id)

    def _tell(self, generation: Generation, state: GenerationState) -> None:
        generation.state = state
        generation.revision += 1
        self._news.set()
        self._news = asyncio.Event()

    def _remove_oldest(self) -> None:
        over = [generation.id for generation in self._generations.values() if generation.is_over]
        for generation_id in over[: max(0, len(over) - _REMEMBERED)]:
            del self._generations[generation_id]


def pictures_of(drawn: ResultEvent, model: Mapping[str, Any], seconds: float) -> Iterator[tuple[GalleryPicture, bytes]]:
    """Yield the pictures of a result for the gallery, each with its PNG, the first one newest.

    ``model``: as ``GET /v1/info`` describes it. ``seconds``: from request to result.
    """
    request, now = drawn.request, datetime.now(UTC)
    adapters = tuple(ScaledAdapter(name=adapter.reference, scale=adapter.scale) for adapter in drawn.adapters)
    for i, image in enumerate(drawn.images):
        created = now - timedelta(microseconds=i)
        recipe = PictureRecipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            seed=image.seed,
            cfg_renorm=request.cfg_renorm,
            quality=request.quality,
            rewrite_prompt=request.rewrite_prompt,
            adapters=adapters,
            edit=_edit_of(request.edit),
        )
        picture = GalleryPicture(
            id=new_id(created),
            created=created,
            recipe=recipe,
            flavour=model.get("flavour", ""),
            precision=model.get("precision", ""),
            model_hash=drawn.model_hash,
            seconds=seconds,
            drawn_prompt=drawn.prompt,
        )
        yield picture, image.content


def _edit_of(edit: ResolvedEdit | None) -> PictureEdit | None:
    if edit is None:
        return None
    expand = None if edit.expand is None else EditMargins(**edit.expand.model_dump())
    strength = None if edit.is_reference and edit.strength == 1 else edit.strength  # nothing that the editor offers
    return PictureEdit(image=edit.image_sha256, mask=edit.mask_sha256, strength=strength, expand=expand)
