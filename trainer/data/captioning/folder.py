"""The pictures of a directory that get captions: a text file beside each. No torch."""

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from longcat.errors import DataError
from longcat.problem import Problem
from longcat.sampling.encoding.picture_file import decode
from longcat.storage.atomic import write_atomically
from trainer.data.captioning.text import CaptionLanguage, checked_caption, instruction
from trainer.data.captions.reader import CAPTION_ENDINGS
from trainer.data.pictures import ENDINGS
from trainer.data.sources import FolderSource

_MOST_PIXELS = 100_000_000
Describe = Callable[[Image.Image, str], str]


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """The result of captioning one picture."""

    key: str
    captions: tuple[str, ...] = ()
    """Its new captions; empty if it has some already."""
    problem: Problem | None = None
    """The reason why it has none."""


def caption_folder(
    folder: Path,
    describe: Describe,
    *,
    languages: Sequence[CaptionLanguage],
    template: str,
    overwrites: bool = False,
    workers: int = 4,
) -> Generator[Captioned, None, None]:
    """Caption the pictures that have no caption, or all; yield each as it is done.

    A caption file is written whole or not at all, so that the same call again continues. Raises ``DataError`` if the
    directory cannot be read at all.
    """
    source = FolderSource(folder, dataset="pictures")
    listing = source.list()
    yield from (Captioned(key=key, problem=problem) for key, problem in listing.unreadable)
    targets: dict[str, str] = {}
    for entry in listing.entries:
        path = PurePosixPath(entry.key)
        if path.suffix.lower() not in ENDINGS:
            continue
        stem = str(path.with_suffix(""))
        has_caption = any(listing.find(name + ending) for name in (stem, entry.key) for ending in CAPTION_ENDINGS)
        if stem in targets.values() or (has_caption and not overwrites):
            yield Captioned(key=entry.key)
        else:
            targets[entry.key] = stem

    def make(key: str) -> Captioned:
        try:
            picture = decode(source.read(key), max_pixels=_MOST_PIXELS)
            captions = tuple(
                checked_caption(describe(picture, instruction(template, language)), language) for language in languages
            )
        except DataError as error:
            return Captioned(key=key, problem=error.problems[0])
        write_atomically(Path(os.path.realpath(folder), targets[key] + ".txt"), ("\n".join(captions) + "\n").encode())
        return Captioned(key=key, captions=captions)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="caption")
    try:
        for done in as_completed([pool.submit(make, key) for key in targets]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)
