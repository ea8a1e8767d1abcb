"""Uploads of pictures and captions into a dataset: verified, safely named, published as a whole. No torch.

Files are untrusted: zips have limits against decompression bombs, no path leads out of the dataset, and every picture
is decoded before it is stored.
"""

import io
import lzma
import re
import secrets
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from longcat.errors import DataError
from longcat.problem import Problem, reason_of
from longcat.storage.disk import writing
from trainer.config.reading.text_encoding import decode_text
from trainer.data.captions.reader import CAPTION_ENDINGS
from trainer.data.pictures import ENDINGS, inspect

_MOST_NAME_BYTES = 200
_DEEPEST = 8
_JUNK = re.compile(r"(^|/)(\.(?!\.?/)|__MACOSX/|Thumbs\.db\Z|desktop\.ini\Z)", re.IGNORECASE)
"""Files that operating systems add to archives."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\]')
_CHUNK_BYTES = 1 << 20
_ENCRYPTED = 0x1
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError, ValueError, OverflowError,
    struct.error, MemoryError,
)  # fmt: skip
"""Exceptions of ``zipfile`` for damaged archives: also for names that are not UTF-8 (a ``ValueError``), and for a
dictionary of LZMA larger than the memory."""


@dataclass(frozen=True, kw_only=True)
class UploadLimits:
    """Size limits of one upload."""

    files: int = 10_000
    """Number of files; a zip counts by its members."""
    total_bytes: int = 4 * 2**30
    """Total size after unpacking."""
    file_bytes: int = 256 * 2**20
    pixels: int = 100_000_000
    """Pixels of a picture; a picture whose header claims more is treated as a decompression bomb."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """Result of an upload."""

    pictures: int
    captions: int
    refused: tuple[tuple[str, Problem], ...]
    """Rejected files: names and problems."""


class _TooMuchError(DataError):
    """The upload as a whole is over a limit."""


@dataclass(kw_only=True)
class _Draft:
    """A hidden directory that is being filled."""

    folder: Path
    limits: UploadLimits
    dataset: Path | None = None
    """The dataset that the files will be added to; None for a new one."""
    taken: set[str] = field(default_factory=set)
    """Existing keys in one case and Unicode form, so that names which some file system treats as equal collide."""
    folders: set[str] = field(default_factory=set)
    """Folders of those keys, in the same form."""
    refused: list[tuple[str, Problem]] = field(default_factory=list)
    pictures: int = 0
    captions: int = 0
    files: int = 0
    bytes: int = 0


def create(folder: Path, files: Iterable[tuple[str, BinaryIO]], limits: UploadLimits) -> Received:
    """Create a dataset from files and zips. Raises ``DataError`` if no file is usable, or over a limit."""
    with _staged(folder.parent, limits) as draft:
        _fill(draft, files)
        with writing(folder, field="dataset"):
            draft.folder.rename(folder)
    return _received(draft)


def add(folder: Path, files: Iterable[tuple[str, BinaryIO]], limits: UploadLimits) -> Received:
    """Add files to a dataset; a file of the same name replaces the existing one. Raises as ``create``."""
    with _staged(folder.parent, limits) as draft:
        draft.dataset = folder
        _fill(draft, files)
        with writing(folder, field="dataset"):
            for path in sorted(path for path in draft.folder.rglob("*") if path.is_file()):
                target = folder / path.relative_to(draft.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    return _received(draft)


def safe_key(name: str) -> str:
    """Return a file's key in a dataset. Raises ``DataError`` for path traversal or an unusable name."""
    if name.startswith(("/", "\\")) or re.match(r"^[A-Za-z]:[\\/]", name):
        raise DataError("upload_path_absolute", "has an absolute path", remedy="give names within the upload")
    parts = [part for part in unicodedata.normalize("NFC", name.replace("\\", "/")).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError("upload_path_leads_out", "leads out of the dataset with ..", remedy="rename it")
    parts = [_UNSAFE.sub("_", part).strip(" .") for part in parts]
    is_unicode = not any("\ud800" <= character <= "\udfff" for part in parts for character in part)
    if not parts or not all(parts) or len(parts) > _DEEPEST or not is_unicode:
        raise DataError("upload_name_unusable", "has a name that no file can have", remedy="rename it")
    if any(len(part.encode()) > _MOST_NAME_BYTES for part in parts):
        raise DataError(
            "upload_name_too_long", "has a name of more than {limit} bytes", remedy="shorten it", limit=_MOST_NAME_BYTES
        )
    return "/".join(parts)


@contextmanager
def _staged(parent: Path, limits: UploadLimits) -> Iterator[_Draft]:
    """Create a draft beside the datasets; delete it at the end unless it was renamed to a dataset."""
    draft = _Draft(folder=parent / f".upload-{secrets.token_hex(6)}", limits=limits)
    with writing(parent, field="dataset"):
        draft.folder.mkdir(parents=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft.folder, ignore_errors=True)


def _fill(draft: _Draft, files: Iterable[tuple[str, BinaryIO]]) -> None:
    for name, stream in files:
        if PurePosixPath(name).suffix.lower() == ".zip":
            _unpack(draft, name, stream)
        else:
            _take(draft, name, stream)
    if not draft.pictures and not draft.captions:
        if not draft.refused:
            raise DataError("upload_empty", "holds no files", remedy="choose pictures and captions", field="files")
        raise DataError.of(problem.within(field="files", value=name) for name, problem in draft.refused[:5])


def _unpack(draft: _Draft, name: str, stream: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(stream) as archive:
            inside = [
                info
                for info in archive.infolist()
                if info.filename and not info.is_dir() and not _JUNK.search(info.filename)
            ]
            if sum(info.file_size for info in inside) > draft.limits.total_bytes:
                raise _too_much(draft.limits, name)
            cut = _common_folder([info.filename for info in inside])
            for info in inside:
                _take_member(draft, archive, info, info.filename[cut:])
    except _ZIP_ERRORS as error:
        draft.refused.append((name, _damaged(error)))


def _take_member(draft: _Draft, archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> None:
    if info.flag_bits & _ENCRYPTED:
        encrypted = Problem(
            code="zip_member_encrypted", template="is encrypted", remedy_template="pack it without a password"
        )
        draft.refused.append((info.filename, encrypted))
    elif stat.S_ISLNK(info.external_attr >> 16):
        link = Problem(code="zip_member_is_link", template="is a link", remedy_template="pack the file itself")
        draft.refused.append((info.filename, link))
    else:
        try:
            with archive.open(info) as member:
                _take(draft, key, member)
        except _ZIP_ERRORS as error:  # other members may be intact
            draft.refused.append((info.filename, _damaged(error)))


def _damaged(error: BaseException) -> Problem:
    return Problem(code="zip_damaged", template="cannot be unpacked: {reason}", details={"reason": reason_of(error)})


def _common_folder(names: list[str]) -> int:
    """Return the length of the single top-level folder's prefix; 0 without one."""
    first = names[0].partition("/")[0] + "/" if names else ""
    return len(first) if len(first) > 1 and all(name.startswith(first) for name in names) else 0


def _take(draft: _Draft, name: str, stream: IO[bytes]) -> None:
    """Store one file, or record its problem. Raises ``DataError`` once the upload as a whole is over a limit."""
    limits = draft.limits
    draft.files += 1
    if draft.files > limits.files:
        raise _TooMuchError(
            "upload_has_too_many_files", "has more than {limit} files", remedy="upload it in parts",
            field="files", limit=f"{limits.files:,}",
        )  # fmt: skip
    try:
        key = safe_key(name)
        ending = PurePosixPath(key).suffix.lower()
        if ending not in ENDINGS and ending not in CAPTION_ENDINGS:
            raise DataError(
                "upload_ending_unknown", "its name ends as no picture or caption does ({ending})", ending=ending or "–"
            )
        content = _read(draft, stream)
        if ending in ENDINGS:
            if problem := inspect(content, max_pixels=limits.pixels).problem:
                raise DataError.of([problem])
        else:
            decode_text(content)
        same, folders = _check_collisions(draft, key)
    except _TooMuchError:
        raise
    except DataError as error:
        draft.refused.append((name, error.problems[0]))
        return
    draft.taken.add(same)
    draft.folders.update(folders)
    draft.pictures += ending in ENDINGS
    draft.captions += ending not in ENDINGS
    target = draft.folder / key
    with writing(target, field="dataset"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _check_collisions(draft: _Draft, key: str) -> tuple[str, list[str]]:
    """Return a key and its folders in the form for comparison. Raises ``DataError`` if they collide."""
    path = PurePosixPath(key)
    same, *folders = [str(part).casefold() for part in (path, *path.parents)][:-1]
    if same in draft.taken:
        raise DataError("upload_file_repeated", "is in the upload twice; the first is kept")
    is_taken = same in draft.folders or any(folder in draft.taken for folder in folders)
    if draft.dataset is not None:
        is_taken |= (draft.dataset / path).is_dir() or any((draft.dataset / part).is_file() for part in path.parents)
    if is_taken:
        raise DataError(
            "upload_file_and_folder", "has the name of a folder, or a file's name as its folder", remedy="rename it"
        )
    return same, folders


def _too_much(limits: UploadLimits, name: str | None = None) -> _TooMuchError:
    return _TooMuchError(
        "upload_over_limit", "unpacks to more than {limit} bytes", remedy="upload it in parts",
        field="files", value=name, limit=f"{limits.total_bytes:,}",
    )  # fmt: skip


def _read(draft: _Draft, stream: IO[bytes]) -> bytes:
    """Return the content, counted while unpacking: the sizes in an archive's headers may be wrong."""
    limits, content = draft.limits, io.BytesIO()
    for chunk in _chunks(stream):
        draft.bytes += len(chunk)
        if draft.bytes > limits.total_bytes:
            raise _too_much(limits)
        if content.tell() + len(chunk) > limits.file_bytes:
            raise DataError("upload_file_over_limit", "has more than {limit} bytes", limit=f"{limits.file_bytes:,}")
        content.write(chunk)
    return content.getvalue()


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _received(draft: _Draft) -> Received:
    return Received(pictures=draft.pictures, captions=draft.captions, refused=tuple(draft.refused))
