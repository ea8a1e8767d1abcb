"""Grids under way and stored: ``grids/<id>/grid.json`` names each cell's picture in the gallery."""

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from lithograph.client.errors import ServiceError
from lithograph.client.protocol import ResultEvent
from longcat.errors import LithographError
from longcat.storage.atomic import write_atomically
from longcat.storage.disk import writing
from studio.connection.service_connection import ServiceConnection
from studio.generate.gallery import Gallery, GalleryPicture, new_id
from studio.generate.generations import pictures_of
from studio.generate.grid.plan import GridPlan
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import PictureRecipe
from studio.web.error_pages import error_of
from studio.web.errors import PageNotFoundError, PictureNotFoundError

_ID = re.compile(r"[0-9]{8}-[0-9]{12}-[0-9a-f]{6}")
_AT_ONCE = 16
"""Requests under way at most: the service batches them and still admits others."""


class PictureGrid(BaseModel):
    """One grid."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Sorts by the time it was made."""
    created: AwareDatetime
    plan: GridPlan
    cells: dict[str, str] = {}
    """Pictures' ids by ``row,column``."""

    @property
    def is_whole(self) -> bool:
        """Return True once every cell has a picture."""
        return len(self.cells) == self.plan.size


class Grids:
    """Grids below one directory, and those under way."""

    def __init__(self, folder: Path, service: ServiceConnection, gallery: Gallery) -> None:
        self._folder = folder
        self._service = service
        self._gallery = gallery
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._live: dict[str, PictureGrid] = {}
        self.errors: dict[str, LithographError] = {}
        """By id: the error that ended a grid's last run."""

    def start(self, plan: GridPlan) -> PictureGrid:
        """Store a grid and start its generation. Raises ``FormError`` if the model needs a picture."""
        GenerationLimits.of(self._service.info).check_picture(plan.recipe)
        now = datetime.now(UTC)
        grid = PictureGrid(id=new_id(now), created=now, plan=plan)
        self._save(grid)
        self.resume(grid.id)
        return grid

    def resume(self, identity: str) -> None:
        """Generate the missing cells unless that is under way. Raises ``PageNotFoundError``."""
        if identity in self._tasks:
            return
        grid = self.get(identity)
        left = {cell: picture.id for cell, picture in self.pictures(grid).items()}
        grid = grid.model_copy(update={"cells": left})
        if grid.is_whole:
            return
        self.errors.pop(identity, None)
        self._live[identity] = grid
        task = asyncio.create_task(self._draw(identity))
        self._tasks[identity] = task
        task.add_done_callback(lambda _: self._end(identity))

    def cancel(self, identity: str) -> None:
        """Cancel the generation; finished cells stay."""
        if (task := self._tasks.get(identity)) is not None:
            task.cancel()

    def is_drawing(self, identity: str) -> bool:
        """Return True while cells are generated."""
        return identity in self._tasks

    def get(self, identity: str) -> PictureGrid:
        """Return a grid. Raises ``PageNotFoundError`` if there is none."""
        if identity in self._live:
            return self._live[identity]
        if not _ID.fullmatch(identity):
            raise PageNotFoundError
        try:
            return PictureGrid.model_validate_json((self._folder / identity / "grid.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise PageNotFoundError from error

    def list(self, *, count: int) -> list[PictureGrid]:
        """Return the newest grids."""
        if not self._folder.is_dir():
            return []
        identities = sorted((path.name for path in self._folder.iterdir() if _ID.fullmatch(path.name)), reverse=True)
        found = []
        for identity in identities[:count]:
            try:
                found.append(self.get(identity))
            except PageNotFoundError:  # half of one, from elsewhere
                continue
        return found

    def pictures(self, grid: PictureGrid) -> dict[str, GalleryPicture]:
        """Return the pictures of the finished cells; deleted ones are left out."""
        found = {}
        for cell, identity in grid.cells.items():
            try:
                found[cell] = self._gallery.get(identity)
            except PictureNotFoundError:
                continue
        return found

    async def close(self) -> None:
        """Cancel all grids under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _draw(self, identity: str) -> None:
        grid = self.get(identity)
        missing = [
            (f"{r},{c}", grid.plan.recipe_of(row, column))
            for r, row in enumerate(grid.plan.rows)
            for c, column in enumerate(grid.plan.columns)
            if f"{r},{c}" not in grid.cells
        ]
        turns = asyncio.Semaphore(_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                for cell, recipe in missing:
                    group.create_task(self._draw_cell(identity, cell, recipe, turns))
        except* Exception as errors:  # any: no one awaits this task, and the page has to show that it ended
            first = errors.exceptions[0]
            self.errors[identity] = error_of(first if isinstance(first, Exception) else RuntimeError(str(first)))

    async def _draw_cell(self, identity: str, cell: str, recipe: PictureRecipe, turns: asyncio.Semaphore) -> None:
        async with turns:
            begun = asyncio.get_running_loop().time()
            drawn = await self._generate(recipe)
            seconds = asyncio.get_running_loop().time() - begun
        ((picture, content),) = pictures_of(drawn, self._service.model, seconds)
        await asyncio.to_thread(self._gallery.add, content, picture)
        grid = self._live[identity]
        self._live[identity] = grid.model_copy(update={"cells": {**grid.cells, cell: picture.id}})
        self._save(self._live[identity])

    async def _generate(self, recipe: PictureRecipe) -> ResultEvent:
        """Generate one picture, and once more if the service ended and restarts."""
        await self._service.wait_for_model()
        try:
            return await self._service.client.generate(recipe.prompt, **recipe.options())
        except ServiceError as error:
            if not await self._service.is_restarting_after(error):
                raise
        await self._service.wait_for_model()
        return await self._service.client.generate(recipe.prompt, **recipe.options())

    def _end(self, identity: str) -> None:
        self._tasks.pop(identity, None)
        self._live.pop(identity, None)

    def _save(self, grid: PictureGrid) -> None:
        with writing(self._folder, field="gallery"):
            write_atomically(
                self._folder / grid.id / "grid.json", grid.model_dump_json(indent=1).encode(), durable=False
            )
