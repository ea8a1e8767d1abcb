"""What is being drawn: requests to the service, followed step by step, and what became of them.

A drawing belongs to the studio and not to a page: pages come and go, and each sees all drawings.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from lithograph.answers import GenerateResponse, PreviewEvent, StepEvent
from studio.failures import page_error_of
from studio.gallery import Gallery, Picture, new_id
from studio.link import Link, LinkState
from studio.page_error import PageError
from studio.recipe import AdapterUse, Recipe

_REMEMBERED = 16
"""Drawings that are over, so that a page that was away for a moment hears of them."""
_PATIENCE_SECONDS = 0.25
"""Between looks at a model that is loading."""


class DrawingState(StrEnum):
    """How far a drawing is."""

    WAITING = "waiting"
    """For the model to be loaded, or for its first step."""
    DRAWING = "drawing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(kw_only=True)
class Progress:
    """One picture of a drawing."""

    step: int = 0
    preview: str = ""
    """A small JPEG in base64 of what it is becoming; empty before the first."""


@dataclass(kw_only=True)
class Drawing:
    """One request for pictures."""

    id: str
    recipe: Recipe
    progress: list[Progress]
    compares: str | None = None
    """The picture that it is to be put beside."""
    state: DrawingState = DrawingState.WAITING
    steps: int = 0
    """Of each picture; 0 before the first is made."""
    pictures: list[Picture] = field(default_factory=list)
    error: PageError | None = None
    revision: int = 0
    """Counts changes."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in (DrawingState.DONE, DrawingState.FAILED, DrawingState.CANCELLED)

    @property
    def steps_made(self) -> int:
        """Of all its pictures."""
        return sum(picture.step for picture in self.progress)

    @property
    def all_steps(self) -> int:
        """Of all its pictures; at least 1."""
        return max(self.steps * len(self.progress), 1)


class Drawings:
    """All drawings of this studio, newest first."""

    def __init__(self, service: Link, gallery: Gallery) -> None:
        self._service = service
        self._gallery = gallery
        self._drawings: dict[str, Drawing] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        """Set at the next change, and then another one."""

    def start(self, recipe: Recipe, *, compares: str | None = None) -> Drawing:
        """Have a recipe drawn; its pictures come to the gallery."""
        progress = [Progress() for _ in range(recipe.num_images)]
        drawing = Drawing(id=uuid.uuid4().hex, recipe=recipe, progress=progress, compares=compares)
        self._drawings[drawing.id] = drawing
        task = asyncio.create_task(self._draw(drawing))
        self._tasks[drawing.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(drawing.id))
        self._forget_oldest()
        return drawing

    def active(self) -> list[Drawing]:
        """Those that are not over, newest first."""
        return [drawing for drawing in reversed(self._drawings.values()) if not drawing.is_over]

    def get(self, drawing_id: str) -> Drawing:
        """One drawing. Raises ``PageError``."""
        if drawing_id not in self._drawings:
            raise PageError("error.no_drawing", status=404)
        return self._drawings[drawing_id]

    def comparing(self, picture_id: str) -> Drawing | None:
        """What is being drawn to be put beside a picture, if anything is."""
        return next((drawing for drawing in self.active() if drawing.compares == picture_id), None)

    def cancel(self, drawing_id: str) -> None:
        """Stop one; the service makes no more steps of it."""
        if (task := self._tasks.get(self.get(drawing_id).id)) is not None:
            task.cancel()

    async def changes(self) -> AsyncIterator[Drawing]:
        """Every drawing as it is now, and again whenever something happens to it."""
        seen: dict[str, int] = {}
        while True:
            news = self._news
            for drawing in list(self._drawings.values()):
                if seen.get(drawing.id) != drawing.revision:
                    seen[drawing.id] = drawing.revision
                    yield drawing
            await news.wait()

    async def close(self) -> None:
        """Stop all."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _draw(self, drawing: Drawing) -> None:
        try:
            await self._follow(drawing)
            self._tell(drawing, DrawingState.DONE)
        except asyncio.CancelledError:
            self._tell(drawing, DrawingState.CANCELLED)
            raise
        except Exception as error:  # whatever it was, whoever waits is told
            drawing.error = page_error_of(error)
            self._tell(drawing, DrawingState.FAILED)

    async def _follow(self, drawing: Drawing) -> None:
        while self._service.state is LinkState.STARTING:
            await asyncio.sleep(_PATIENCE_SECONDS)
        recipe = drawing.recipe
        begun = asyncio.get_running_loop().time()
        stream = self._service.client.stream(recipe.prompt, previews=True, **recipe.options())
        async with aclosing(stream):
            async for event in stream:
                match event:
                    case StepEvent():
                        drawing.steps = event.steps
                        drawing.progress[event.image].step = event.step
                        self._tell(drawing, DrawingState.DRAWING)
                    case PreviewEvent():
                        drawing.progress[event.image].preview = event.b64
                        self._tell(drawing, DrawingState.DRAWING)
                    case GenerateResponse():
                        await self._keep(drawing, event, asyncio.get_running_loop().time() - begun)

    async def _keep(self, drawing: Drawing, drawn: GenerateResponse, seconds: float) -> None:
        """Put the pictures into the gallery, the first one newest."""
        request, now = drawn.request, datetime.now(UTC)
        adapters = tuple(AdapterUse(name=adapter.reference, scale=adapter.scale) for adapter in drawn.adapters)
        info = self._service.info or {"model": {"flavour": ""}}
        for i, image in enumerate(drawn.images):
            created = now - timedelta(microseconds=i)
            picture = Picture(
                id=new_id(created),
                created=created,
                recipe=Recipe(
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
                model_hash=drawn.model_hash,
                seconds=seconds,
                drawn_prompt=drawn.prompt,
            )
            await asyncio.to_thread(self._gallery.add, image.content, picture)
            drawing.pictures.append(picture)
        if drawing.compares is not None:
            await asyncio.to_thread(self._gallery.pair, drawing.compares, drawing.pictures[0].id)

    def _tell(self, drawing: Drawing, state: DrawingState) -> None:
        drawing.state = state
        drawing.revision += 1
        self._news.set()
        self._news = asyncio.Event()

    def _forget_oldest(self) -> None:
        over = [drawing.id for drawing in self._drawings.values() if drawing.is_over]
        for drawing_id in over[: max(0, len(over) - _REMEMBERED)]:
            del self._drawings[drawing_id]
