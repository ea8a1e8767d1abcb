"""The masks of a dataset's pictures: files of the same names in a dataset of their own. No torch."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from longcat.errors import DataError
from longcat.problem import Problem
from longcat.storage.interface import Entry
from trainer.config.dataset_options import DatasetConfig
from trainer.data.advice import some
from trainer.data.inventory import DatasetContents
from trainer.data.pictures import ENDINGS, PictureFacts, inspect
from trainer.data.sample import Mask
from trainer.data.scanning.index import Index
from trainer.data.sources import open_source, same_name, source_name


class MaskReader:
    """The masks of one dataset's pictures; thread-safe."""

    def __init__(self, config: DatasetConfig, index: Index, *, max_pixels: int) -> None:
        self._config, self._index, self._max_pixels = config, index, max_pixels
        self._source = open_source(config)
        self._name = source_name(config)
        listing = self._source.list()
        self._unreadable = dict(listing.unreadable)
        self._entries = [e for e in listing.entries if PurePosixPath(e.key).suffix.lower() in ENDINGS]
        self._known = {entry: facts for entry in self._entries if (facts := index.find(self._name, entry))}
        self._used: set[str] = set()
        self._by_name: dict[str, list[Entry]] = {}
        for entry in self._entries:
            self._by_name.setdefault(_stem(entry.key), []).append(entry)
        self.contents = DatasetContents.of(config, listing.entries)

    def read(self, key: str, picture: PictureFacts) -> Mask:
        """Return the mask of a picture. Raises ``DataError`` if there is none that fits it."""
        entry = self._find(key)
        self._used.add(entry.key)
        facts = self._known.get(entry)
        try:
            if facts is None:
                facts = self._known[entry] = inspect(self._source.read(entry.key), max_pixels=self._max_pixels)
            if facts.problem is not None:
                raise DataError.of([facts.problem])
        except DataError as error:
            raise DataError(
                "mask_unusable", "its mask {name} cannot be used: {cause}", name=entry.key, cause=error.problems[0]
            ) from error
        if not _has_shape(facts, picture):
            raise DataError(
                "mask_of_another_shape",
                "its mask {name} has {mask_width} x {mask_height} px, and the picture {width} x {height}",
                remedy="give a mask of the picture's size or shape",
                name=entry.key, mask_width=facts.width_px, mask_height=facts.height_px,
                width=picture.width_px, height=picture.height_px,
            )  # fmt: skip
        return Mask(
            key=entry.key, digest=facts.digest, width_px=facts.width_px, height_px=facts.height_px, config=self._config
        )

    def store(self) -> None:
        """Keep the facts of the masks for the next scan."""
        self._index.store(self._name, self._known)

    def warnings(self) -> Iterator[Problem]:
        """Yield warnings that name masks of no picture, and files that cannot be read."""
        if self._unreadable:
            yield Problem(
                code="masks_unreadable", template="masks {names} cannot be read: {cause}",
                field="dataset", value=self._config.id,
                details={"names": some(self._unreadable), "cause": next(iter(self._unreadable.values()))},
            )  # fmt: skip
        names = [entry.key for entry in self._entries if entry.key not in self._used]
        if not names:
            return
        yield Problem(
            code="masks_without_picture", template="masks {names} belong to no picture",
            field="dataset", value=self._config.id, details={"names": some(names)},
        )  # fmt: skip

    def _find(self, key: str) -> Entry:
        """Return the file of the same path and ending, or else the only one of the same path."""
        found = self._by_name.get(_stem(key), [])
        same = [entry for entry in found if same_name(entry.key) == same_name(key)]
        if len(same or found) == 1:
            return (same or found)[0]
        if found:
            names = [entry.key for entry in found]
            raise DataError(
                "mask_ambiguous", "several masks have its name: {names}", remedy="leave one of them", names=some(names)
            )
        raise DataError(
            "mask_missing",
            "no mask: dataset {dataset!r} has no {name}",
            remedy="add one; an all-white picture has all of it learned",
            dataset=self._config.id,
            name=str(PurePosixPath(key).with_suffix(".png")),
        )


def folder_within(pictures: DatasetConfig, masks: DatasetConfig) -> str | None:
    """Return the key of the masks' folder if it is inside that of the pictures: its files are no training pictures."""
    if pictures.type != masks.type or pictures.aws_bucket_name != masks.aws_bucket_name:
        return None
    if pictures.type == "aws":
        outer, inner = (PurePosixPath("/", of.aws_data_prefix.strip("/")) for of in (pictures, masks))
        inside = inner.relative_to(outer) if inner.is_relative_to(outer) else None
    else:
        root, folder = (Path(str(of.instance_data_dir)).expanduser().resolve() for of in (pictures, masks))
        inside = PurePosixPath(folder.relative_to(root)) if folder.is_relative_to(root) else None
    return None if inside in (None, PurePosixPath()) else f"{inside}/"


def _stem(key: str) -> str:
    return same_name(str(PurePosixPath(key).with_suffix("")))


def _has_shape(mask: PictureFacts, picture: PictureFacts) -> bool:
    """Return whether a mask has the picture's aspect ratio, but for a pixel of the mask from rounding."""
    height = mask.width_px * picture.height_px / picture.width_px
    width = mask.height_px * picture.width_px / picture.height_px
    return abs(height - mask.height_px) <= 1 or abs(width - mask.width_px) <= 1
