"""The second pictures of a dataset's pictures, masks or references: files of the same names in a dataset of their own.

No torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from longcat.errors import DataError
from longcat.problem import Problem
from longcat.storage.interface import Entry
from trainer.config.dataset_options import DatasetConfig
from trainer.data.advice import some
from trainer.data.inventory import DatasetContents
from trainer.data.pictures import ENDINGS, PictureFacts, inspect
from trainer.data.sample import LinkedPicture
from trainer.data.scanning.index import Index
from trainer.data.sources import open_source, same_name, source_name

_NAMED = 20
"""Most files that a warning names."""


@dataclass(frozen=True, kw_only=True)
class LinkedProblems:
    """The problems of one kind of second pictures, without their details."""

    missing: Problem
    ambiguous: Problem
    unusable: Problem
    of_another_shape: Problem
    without_picture: Problem
    unreadable: Problem


MASKS = LinkedProblems(
    missing=Problem(
        code="mask_missing", template="no mask: dataset {dataset!r} has no {name}",
        remedy_template="add one; an all-white picture has all of it learned",
    ),
    ambiguous=Problem(
        code="mask_ambiguous", template="several masks have its name: {names}", remedy_template="leave one of them"
    ),
    unusable=Problem(code="mask_unusable", template="its mask {name} cannot be used: {cause}"),
    of_another_shape=Problem(
        code="mask_of_another_shape",
        template="its mask {name} has {own_width} x {own_height} px, and the picture {width} x {height}",
        remedy_template="give a mask of the picture's size or shape",
    ),
    without_picture=Problem(code="masks_without_picture", template="masks {names} belong to no picture"),
    unreadable=Problem(code="masks_unreadable", template="masks {names} cannot be read: {cause}"),
)  # fmt: skip
REFERENCES = LinkedProblems(
    missing=Problem(
        code="reference_of_pair_missing", template="no reference: dataset {dataset!r} has no {name}",
        remedy_template="add the picture that it is edited from, under the same name",
    ),
    ambiguous=Problem(
        code="reference_ambiguous", template="several references have its name: {names}",
        remedy_template="leave one of them",
    ),
    unusable=Problem(code="reference_unusable", template="its reference {name} cannot be used: {cause}"),
    of_another_shape=Problem(
        code="reference_of_another_shape",
        template="its reference {name} has {own_width} x {own_height} px, and the picture {width} x {height}, which is "
        "another shape",
        remedy_template="give conditioning_type reference_loose, which cuts the reference to the picture's shape; or a "
        "reference of that shape",
    ),
    without_picture=Problem(
        code="references_without_picture", template="references of no picture, {count} in all: {names}",
        remedy_template="add the edited pictures, under the same names",
    ),
    unreadable=Problem(code="references_unreadable", template="references {names} cannot be read: {cause}"),
)  # fmt: skip


class LinkedReader:
    """The second pictures of one dataset's pictures; thread-safe."""

    def __init__(self, config: DatasetConfig, problems: LinkedProblems, index: Index, *, max_pixels: int) -> None:
        """List the files of ``config``. Raises ``DataError`` if they cannot be listed."""
        self._config, self._problems, self._index, self._max_pixels = config, problems, index, max_pixels
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

    @property
    def has_any_shape(self) -> bool:
        """True if its pictures are cut to the shape of those that they belong to."""
        return self._config.conditioning_type == "reference_loose"

    def read(self, key: str, picture: PictureFacts | None) -> LinkedPicture:
        """Return the second picture of a picture. Raises ``DataError`` if there is none, or none that fits it.

        ``picture``: None if its file could not be read.
        """
        entry = self._find(key)
        self._used.add(entry.key)
        facts = self._known.get(entry)
        try:
            if facts is None:
                facts = self._known[entry] = inspect(self._source.read(entry.key), max_pixels=self._max_pixels)
            if facts.problem is not None:
                raise DataError.of([facts.problem])
        except DataError as error:
            raise _error(self._problems.unusable, name=entry.key, cause=error.problems[0]) from error
        can_differ = picture is not None and picture.problem is None and not self.has_any_shape
        if picture is not None and can_differ and not _has_shape(facts, picture):
            raise _error(
                self._problems.of_another_shape,
                name=entry.key, own_width=facts.width_px, own_height=facts.height_px,
                width=picture.width_px, height=picture.height_px,
            )  # fmt: skip
        return LinkedPicture(
            key=entry.key, digest=facts.digest, width_px=facts.width_px, height_px=facts.height_px, config=self._config
        )

    def store(self) -> None:
        """Keep the facts of the pictures for the next scan."""
        self._index.store(self._name, self._known)

    def warnings(self) -> Iterator[Problem]:
        """Yield warnings that name files of no picture, and files that cannot be read."""
        if self._unreadable:
            cause = next(iter(self._unreadable.values()))
            yield self._warning(self._problems.unreadable, list(self._unreadable), cause=cause)
        if names := [entry.key for entry in self._entries if entry.key not in self._used]:
            yield self._warning(self._problems.without_picture, names)

    def _warning(self, problem: Problem, names: list[str], **details: object) -> Problem:
        named = details | {"names": some(names, most=_NAMED), "count": len(names)}
        return replace(problem, field="dataset", value=self._config.id, details=named)

    def _find(self, key: str) -> Entry:
        """Return the file of the same path and ending, or else the only one of the same path."""
        found = self._by_name.get(_stem(key), [])
        same = [entry for entry in found if same_name(entry.key) == same_name(key)]
        if len(same or found) == 1:
            return (same or found)[0]
        if found:
            raise _error(self._problems.ambiguous, names=some(entry.key for entry in found))
        name = str(PurePosixPath(key).with_suffix(".png"))
        raise _error(self._problems.missing, dataset=self._config.id, name=name)


def folder_within(pictures: DatasetConfig, linked: DatasetConfig) -> str | None:
    """Return the key of a linked folder if it is inside that of the pictures: its files are no training pictures."""
    if pictures.type != linked.type or pictures.aws_bucket_name != linked.aws_bucket_name:
        return None
    if pictures.type == "aws":
        outer, inner = (PurePosixPath("/", of.aws_data_prefix.strip("/")) for of in (pictures, linked))
        inside = inner.relative_to(outer) if inner.is_relative_to(outer) else None
    else:
        root, folder = (Path(str(of.instance_data_dir)).expanduser().resolve() for of in (pictures, linked))
        inside = PurePosixPath(folder.relative_to(root)) if folder.is_relative_to(root) else None
    return None if inside in (None, PurePosixPath()) else f"{inside}/"


def _error(problem: Problem, **details: object) -> DataError:
    return DataError.of([replace(problem, details=details)])


def _stem(key: str) -> str:
    return same_name(str(PurePosixPath(key).with_suffix("")))


def _has_shape(linked: PictureFacts, picture: PictureFacts) -> bool:
    """Return whether a linked picture has the picture's aspect ratio, but for a pixel of its own from rounding."""
    height = linked.width_px * picture.height_px / picture.width_px
    width = linked.height_px * picture.width_px / picture.height_px
    return abs(height - linked.height_px) <= 1 or abs(width - linked.width_px) <= 1
