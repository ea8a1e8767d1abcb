"""Pictures that were drawn, each with its recipe.

``gallery/<id>/`` holds ``picture.png``, ``thumbnail.webp`` and ``picture.json``; it appears whole or not at all.
"""

import io
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from longcat.storage.atomic import write_atomically
from longcat.storage.disk import writing
from studio.generate.recipe import PictureRecipe
from studio.web.errors import PictureNotFoundError

_ID = re.compile(r"[0-9]{8}-[0-9]{12}-[0-9a-f]{6}")
_THUMBNAIL_PX = 384
_THUMBNAIL_QUALITY = 82
_COUNTERPART = "counterpart"


class GalleryPicture(BaseModel):
    """One picture of the gallery."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Sorts by the time it was made."""
    created: AwareDatetime
    recipe: PictureRecipe
    """With nothing left open: drawing it gives this picture again."""
    flavour: str
    model_hash: str
    """SHA-256 of the model that drew it."""
    seconds: float
    """From request to picture, its neighbours' time included."""
    drawn_prompt: str
    """What was drawn, if the prompt was rewritten."""

    @property
    def file_name(self) -> str:
        """For a download: what it shows, and its seed."""
        words = re.sub(r"\W+", "-", self.recipe.prompt).strip("-")[:40]
        return f"{words or 'picture'}-{self.recipe.seed}.png"


class Gallery:
    """Pictures below one directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, content: bytes, picture: GalleryPicture) -> None:
        """Keep a PNG and what is known of it. Raises ``StorageError`` if the disk refuses."""
        with writing(self._folder, field="gallery"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self._folder) as scratch:
                partial = Path(scratch, "whole")
                partial.mkdir()
                (partial / "picture.png").write_bytes(content)
                _write_thumbnail(content, partial / "thumbnail.webp")
                (partial / "picture.json").write_text(picture.model_dump_json(indent=1), encoding="utf-8")
                partial.rename(self._folder / picture.id)

    def page(self, *, before: str | None, count: int) -> list[GalleryPicture]:
        """The newest pictures, or those older than one."""
        found: list[GalleryPicture] = []
        for picture_id in sorted(self._ids(), reverse=True):
            if before is None or picture_id < before:
                try:
                    found.append(self.get(picture_id))
                except PictureNotFoundError:  # removed since it was listed
                    continue
            if len(found) == count:
                break
        return found

    def get(self, picture_id: str) -> GalleryPicture:
        """One picture. Raises ``PictureNotFoundError`` if there is none."""
        try:
            return GalleryPicture.model_validate_json((self._path(picture_id) / "picture.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise PictureNotFoundError from error

    def file(self, picture_id: str, name: str) -> Path:
        """``picture.png`` or ``thumbnail.webp``. Raises ``PictureNotFoundError`` if it is not there."""
        path = self._path(picture_id) / name
        if not path.is_file():
            raise PictureNotFoundError
        return path

    def remove(self, picture_id: str) -> None:
        """Forget a picture; nothing happens if it is not there."""
        path = self._path(picture_id)
        doomed = path.with_name(f".old-{path.name}")
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed)

    def pair(self, picture_id: str, counterpart_id: str) -> None:
        """Remember what a picture is compared with."""
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

    def _ids(self) -> Iterator[str]:
        if self._folder.is_dir():
            yield from (path.name for path in self._folder.iterdir() if _ID.fullmatch(path.name))


def new_id(now: datetime) -> str:
    """An id that sorts by time."""
    return f"{now.astimezone(UTC):%Y%m%d-%H%M%S%f}-{secrets.token_hex(3)}"


def _write_thumbnail(content: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(content)) as image:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        small.save(path, "WEBP", quality=_THUMBNAIL_QUALITY)
