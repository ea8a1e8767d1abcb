"""Generated pictures, each with its recipe.

``gallery/<id>/`` holds ``picture.png``, ``thumbnail.webp`` and ``picture.json``, and for an edited picture the one that it
was made from and the mask, each as ``<SHA-256>.png``; it appears whole or not at all. A file ``favourite`` marks a picture,
and ``counterpart`` names the one that it is compared with.
"""

import io
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

from PIL import Image
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from longcat.storage.atomic import write_atomically
from longcat.storage.disk import writing
from studio.generate.editing.sources import Sources
from studio.generate.recipe import PictureEdit, PictureRecipe
from studio.web.errors import PictureNotFoundError

_ID = re.compile(r"[0-9]{8}-[0-9]{12}-[0-9a-f]{6}")
_THUMBNAIL_PX = 384
_THUMBNAIL_QUALITY = 82
_COUNTERPART = "counterpart"
_FAVOURITE = "favourite"


class GalleryPicture(BaseModel):
    """One picture of the gallery."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Sorts by the time it was made."""
    created: AwareDatetime
    recipe: PictureRecipe
    """Resolved: generating it gives this picture again."""
    flavour: str
    precision: str = ""
    """Precision of the model's weights; empty for older pictures, which have no record of it."""
    model_hash: str
    """SHA-256 of the model that drew it."""
    seconds: float
    """From request to picture, waiting included."""
    drawn_prompt: str
    """The prompt after rewriting, if it was rewritten."""
    is_favourite: Annotated[bool, Field(exclude=True)] = False

    @property
    def adapters(self) -> frozenset[str]:
        """Names of its adapters, without versions."""
        return frozenset(adapter.name.partition("@")[0] for adapter in self.recipe.adapters)

    @property
    def file_name(self) -> str:
        """Name of a download: words of the prompt, and the seed."""
        words = re.sub(r"\W+", "-", self.recipe.prompt).strip("-")[:40]
        return f"{words or 'picture'}-{self.recipe.seed}.png"


@dataclass(frozen=True, kw_only=True)
class GalleryFilter:
    """A choice among the pictures; each part narrows it."""

    words: str = ""
    """Every one of them is in the prompt."""
    adapter: str = ""
    """A name without a version."""
    favourites: bool = False
    source: str = ""
    """SHA-256 of the picture that it was made from."""

    @property
    def is_open(self) -> bool:
        """Return True if every picture is chosen."""
        return self == GalleryFilter()

    def takes(self, picture: GalleryPicture) -> bool:
        """Return True if the picture is chosen."""
        prompt = picture.recipe.prompt.casefold()
        return (
            all(word in prompt for word in self.words.casefold().split())
            and (not self.adapter or self.adapter in picture.adapters)
            and (not self.favourites or picture.is_favourite)
            and (not self.source or (picture.recipe.edit is not None and picture.recipe.edit.image == self.source))
        )


EVERYTHING = GalleryFilter()


class Gallery:
    """Pictures below one directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sources = Sources(folder / "sources")
        self._known: dict[str, GalleryPicture] = {}
        """Pictures that were read: a description never changes, apart from the favourite, which is looked up."""

    def add(self, content: bytes, picture: GalleryPicture) -> None:
        """Store a PNG and its description. Raises ``StorageError`` if the disk is full or cannot be written."""
        with writing(self._folder, field="gallery"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self._folder) as scratch:
                partial = Path(scratch, "whole")
                partial.mkdir()
                (partial / "picture.png").write_bytes(content)
                _write_thumbnail(content, partial / "thumbnail.webp")
                (partial / "picture.json").write_text(picture.model_dump_json(indent=1), encoding="utf-8")
                for digest in _files_of(picture.recipe.edit):
                    self.sources.keep_in(partial, digest)
                partial.rename(self._folder / picture.id)

    def page(self, *, before: str | None, count: int, chosen: GalleryFilter = EVERYTHING) -> list[GalleryPicture]:
        """Return the newest pictures that a filter takes, or those older than one."""
        found = (picture for picture in self._newest(before) if chosen.takes(picture))
        return list(islice(found, count))

    def adapters(self) -> list[str]:
        """Return the names of all adapters that pictures were drawn with."""
        return sorted({name for picture in self._newest(None) for name in picture.adapters})

    def prompts(self, *, count: int) -> list[str]:
        """Return the last prompts, each once, the newest first."""
        found: dict[str, None] = {}
        for picture in self._newest(None):
            found.setdefault(picture.recipe.prompt)
            if len(found) == count:
                break
        return list(found)

    def get(self, picture_id: str) -> GalleryPicture:
        """Return a picture. Raises ``PictureNotFoundError`` if there is none."""
        path = self._path(picture_id)
        try:
            known = self._known.get(picture_id)
            if known is None or not path.is_dir():
                known = GalleryPicture.model_validate_json((path / "picture.json").read_bytes())
                self._known[picture_id] = known
        except (OSError, ValidationError) as error:
            self._known.pop(picture_id, None)
            raise PictureNotFoundError from error
        return known.model_copy(update={"is_favourite": (path / _FAVOURITE).exists()})

    def recipe(self, picture_id: str) -> PictureRecipe:
        """Return a picture's recipe, to be used again, with the files that it needs among the sources."""
        recipe = self.get(picture_id).recipe
        for digest in _files_of(recipe.edit):
            self.sources.take_from(self._path(picture_id), digest)
        return recipe

    def mark(self, picture_id: str, *, favourite: bool) -> GalleryPicture:
        """Mark a picture as a favourite, or no longer. Raises ``PictureNotFoundError`` if there is none."""
        self.get(picture_id)
        marker = self._path(picture_id) / _FAVOURITE
        if favourite:
            with writing(self._folder, field="gallery"):
                marker.touch()
        else:
            marker.unlink(missing_ok=True)
        return self.get(picture_id)

    def file(self, picture_id: str, name: str) -> Path:
        """Return the path of one of a picture's files. Raises ``PictureNotFoundError`` if it is not there."""
        path = self._path(picture_id) / name
        if not path.is_file():
            raise PictureNotFoundError
        return path

    def remove(self, picture_id: str) -> None:
        """Delete a picture; nothing happens if it does not exist."""
        self._known.pop(picture_id, None)
        path = self._path(picture_id)
        doomed = path.with_name(f".old-{path.name}")
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed)

    def pair(self, picture_id: str, counterpart_id: str) -> None:
        """Store the id of the picture that another is compared with."""
        write_atomically(self._path(picture_id) / _COUNTERPART, counterpart_id.encode())

    def counterpart(self, picture_id: str) -> GalleryPicture | None:
        """Return the picture that another is compared with, if it still exists."""
        try:
            return self.get((self._path(picture_id) / _COUNTERPART).read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError, PictureNotFoundError):
            return None

    def _path(self, picture_id: str) -> Path:
        if not _ID.fullmatch(picture_id):
            raise PictureNotFoundError
        return self._folder / picture_id

    def _newest(self, before: str | None) -> Iterator[GalleryPicture]:
        """Yield the pictures, or those older than one, from the newest on."""
        for picture_id in sorted(self._ids(), reverse=True):
            if before is None or picture_id < before:
                try:
                    yield self.get(picture_id)
                except PictureNotFoundError:  # removed since it was listed
                    continue

    def _ids(self) -> Iterator[str]:
        if self._folder.is_dir():
            yield from (path.name for path in self._folder.iterdir() if _ID.fullmatch(path.name))


def _files_of(edit: PictureEdit | None) -> tuple[str, ...]:
    return () if edit is None else edit.files


def new_id(now: datetime) -> str:
    """Return an id that sorts by time."""
    return f"{now.astimezone(UTC):%Y%m%d-%H%M%S%f}-{secrets.token_hex(3)}"


def _write_thumbnail(content: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(content)) as image:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        small.save(path, "WEBP", quality=_THUMBNAIL_QUALITY)
