"""Pictures and captions from a browser to a dataset: checked, named safely, seen only once all are there. No torch.

Files come from anywhere: zips within limits, no path leads out of the dataset, every picture is decoded before it is kept.
"""

import io
import re
import secrets
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from longcat.errors import DataError, StorageError
from trainer.caption_files import CAPTION_ENDINGS, decode_text
from trainer.pictures import ENDINGS, inspect

_MOST_NAME_BYTES = 200
_DEEPEST = 8
_JUNK = re.compile(r"(^|/)(\.(?!\.?/)|__MACOSX/|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
"""What systems leave in archives without being asked."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\]')
_CHUNK_BYTES = 1 << 20
_ENCRYPTED = 0x1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one upload may bring."""

    files: int = 10_000
    """Zips count as what is in them."""
    total_bytes: int = 4 * 2**30
    """Unpacked."""
    file_bytes: int = 256 * 2**20
    pixels: int = 100_000_000
    """Of a picture; one that claims more is taken for a decompression bomb."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """What became of an upload."""

    pictures: int
    captions: int
    refused: tuple[tuple[str, str], ...]
    """Names and reasons."""


class _TooMuchError(DataError):
    """The upload as a whole is over a limit."""


@dataclass(kw_only=True)
class _Draft:
    """A directory that is being filled, unseen."""

    folder: Path
    limits: Limits
    taken: set[str] = field(default_factory=set)
    """Keys that are there, in one case and Unicode form: what two systems would take for one file is one."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    pictures: int = 0
    captions: int = 0
    files: int = 0
    bytes: int = 0


def create(folder: Path, files: Iterable[tuple[str, BinaryIO]], limits: Limits) -> Received:
    """Make a dataset of files and zips. Raises ``DataError`` if none can be used or there are too many."""
    with _staged(folder.parent, limits) as draft:
        _fill(draft, files)
        try:
            draft.folder.rename(folder)
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error.strerror or error}; is the name taken?") from error
    return _received(draft)


def add(folder: Path, files: Iterable[tuple[str, BinaryIO]], limits: Limits) -> Received:
    """Add to a dataset; a file of the same name takes the place of the one before. Raises as ``create``."""
    with _staged(folder.parent, limits) as draft:
        _fill(draft, files)
        try:
            for path in sorted(path for path in draft.folder.rglob("*") if path.is_file()):
                target = folder / path.relative_to(draft.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        except OSError as error:
            raise StorageError(f"{folder} cannot be written: {error.strerror or error}; check the disk") from error
    return _received(draft)


def safe_key(name: str) -> str:
    """A file's name as its key in a dataset. Raises ``DataError`` for one that leads out of it, or says nothing."""
    if name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:[\\/]", name):
        raise DataError("has an absolute path: only names within the upload are taken")
    parts = [part for part in unicodedata.normalize("NFC", name.replace("\\", "/")).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError("leads out of the dataset with ..")
    parts = [_UNSAFE.sub("_", part).strip(" .") for part in parts]
    if not parts or not all(parts) or len(parts) > _DEEPEST:
        raise DataError("has a name that no file can have: rename it")
    if any(len(part.encode("utf-8", "surrogatepass")) > _MOST_NAME_BYTES for part in parts):
        raise DataError(f"has a name of more than {_MOST_NAME_BYTES} bytes: shorten it")
    return "/".join(parts)


class _staged:  # noqa: N801
    """A draft beside the datasets, gone in the end unless it became one."""

    def __init__(self, parent: Path, limits: Limits) -> None:
        self._draft = _Draft(folder=parent / f".upload-{secrets.token_hex(6)}", limits=limits)

    def __enter__(self) -> _Draft:
        try:
            self._draft.folder.mkdir(parents=True)
        except OSError as error:
            raise StorageError(f"{self._draft.folder.parent} cannot be written: {error.strerror or error}") from error
        return self._draft

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._draft.folder, ignore_errors=True)


def _fill(draft: _Draft, files: Iterable[tuple[str, BinaryIO]]) -> None:
    for name, stream in files:
        if PurePosixPath(name).suffix.lower() == ".zip":
            _unpack(draft, name, stream)
        else:
            _take(draft, name, stream)
    if not draft.pictures and not draft.captions:
        reasons = "; ".join(f"{name} {reason}" for name, reason in draft.refused[:5])
        raise DataError(f"nothing of the upload can be used: {reasons or 'it holds no files'}")


def _unpack(draft: _Draft, name: str, stream: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(stream) as archive:
            inside = [info for info in archive.infolist() if not info.is_dir() and not _JUNK.search(info.filename)]
            if sum(info.file_size for info in inside) > draft.limits.total_bytes:
                raise DataError(f"{name} unpacks to more than {draft.limits.total_bytes:,} bytes: upload it in parts")
            cut = _common_folder([info.filename for info in inside])
            for info in inside:
                _take_member(draft, archive, info, info.filename[cut:])
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        draft.refused.append((name, f"is no zip that can be unpacked: {error}"))


def _take_member(draft: _Draft, archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> None:
    if info.flag_bits & _ENCRYPTED:
        draft.refused.append((info.filename, "is encrypted: pack it without a password"))
    elif stat.S_ISLNK(info.external_attr >> 16):
        draft.refused.append((info.filename, "is a link: pack the file itself"))
    else:
        with archive.open(info) as member:
            _take(draft, key, member)  # type: ignore[arg-type]


def _common_folder(names: list[str]) -> int:
    """Characters of the one folder that everything is packed in, if it is."""
    first = names[0].partition("/")[0] + "/" if names else ""
    return len(first) if len(first) > 1 and all(name.startswith(first) for name in names) else 0


def _take(draft: _Draft, name: str, stream: BinaryIO) -> None:
    """Keep one file, or say why not. Raises ``DataError`` once the upload as a whole is too much."""
    limits = draft.limits
    draft.files += 1
    if draft.files > limits.files:
        raise _TooMuchError(f"the upload has more than {limits.files:,} files: upload it in parts")
    try:
        key = safe_key(name)
        ending = PurePosixPath(key).suffix.lower()
        if ending not in ENDINGS and ending not in CAPTION_ENDINGS:
            raise DataError(f"ends in {ending or 'nothing'}, as no picture or caption does")
        content = _read(draft, stream)
        if ending in ENDINGS:
            reason = inspect(content, max_pixels=limits.pixels).reason
            if reason:
                raise DataError(reason)
        else:
            decode_text(content)
        if (same := key.casefold()) in draft.taken:
            raise DataError("is there twice in the upload: the first is kept")
    except _TooMuchError:
        raise
    except DataError as error:
        draft.refused.append((name, str(error)))
        return
    draft.taken.add(same)
    draft.pictures += ending in ENDINGS
    draft.captions += ending not in ENDINGS
    target = draft.folder / key
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    except OSError as error:
        raise StorageError(f"{target.name} cannot be written: {error.strerror or error}; check the disk") from error


def _read(draft: _Draft, stream: BinaryIO) -> bytes:
    """All of it, counted as it comes: what an archive says of its sizes may be wrong."""
    limits, content = draft.limits, io.BytesIO()
    for chunk in _chunks(stream):
        draft.bytes += len(chunk)
        if draft.bytes > limits.total_bytes:
            raise _TooMuchError(f"the upload unpacks to more than {limits.total_bytes:,} bytes: upload it in parts")
        if content.tell() + len(chunk) > limits.file_bytes:
            raise DataError(f"has more than {limits.file_bytes:,} bytes")
        content.write(chunk)
    return content.getvalue()


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _received(draft: _Draft) -> Received:
    return Received(pictures=draft.pictures, captions=draft.captions, refused=tuple(draft.refused))
