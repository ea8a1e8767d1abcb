"""The origin of a picture file by its label, its recipe and its signature, and whether these agree."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from longcat.errors import UserError
from longcat.problem import Problem
from longcat.storage.regular import open_regular
from service.wire.picture import Recipe, metadata_in, recipe_of
from service.wire.provenance.packet import EDITED_SOURCE, GENERATED_SOURCE, SOURCE_PROPERTY, content_id_of
from service.wire.provenance.verification import ManifestUnreadableError, SignedManifest, read_manifest


@dataclass(frozen=True, kw_only=True)
class PictureOrigin:
    """The statements of a picture file about its origin."""

    source_type: str | None
    """IPTC's digital source type, as the file has it."""
    producer: str | None
    content_id: str | None
    recipe: Recipe | None
    manifest: SignedManifest | None = None
    damage: str | None = None
    """Reason why its manifest cannot be read."""
    unchecked: Problem | None = None
    """Reason why its manifest, if any, was not checked: c2pa's library is not installed, or the manifest is too large."""

    @property
    def is_labelled(self) -> bool:
        """True if its label says that a model made it, or changed it."""
        return self.source_type in (GENERATED_SOURCE, EDITED_SOURCE)

    @property
    def is_edit(self) -> bool:
        """True if its label says that a model made it from another picture."""
        return self.source_type == EDITED_SOURCE

    @property
    def agrees(self) -> bool | None:
        """True if the label's id is that of the recipe; None if one of them is missing."""
        if self.recipe is None or self.content_id is None:
            return None
        return self.content_id == content_id_of(self.recipe.as_json())

    @property
    def is_signed(self) -> bool | None:
        """True for a file with a manifest, readable or not; None if that was not checked."""
        if self.unchecked is not None:
            return None
        return self.manifest is not None or self.damage is not None

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong with the manifest. An unknown issuer is no problem."""
        if self.damage is not None:
            return (self.damage,)
        return () if self.manifest is None else self.manifest.failures


def origin_of(file: Path | BinaryIO, *, name: str, trust: str | None = None) -> PictureOrigin:
    """Return what a picture file says, which errors call ``name``. ``trust``: root certificates in PEM.

    Raises ``RecipeError`` for a file that is no picture, too large, or of a format that carries nothing.
    """
    found = metadata_in(file, name=name)
    label = _label_of(found.get("TC260:AIGC"))
    stated: dict[str, Any] = {
        "source_type": found.get(SOURCE_PROPERTY),
        "producer": _text(label.get("ContentProducer")),
        "content_id": _text(label.get("ProduceID")),
        "recipe": recipe_of(found, name=name) if "lithograph:recipe" in found else None,
    }
    try:
        return PictureOrigin(**stated, manifest=read_manifest(_content(file), trust=trust))
    except ManifestUnreadableError as error:
        return PictureOrigin(**stated, damage=str(error))
    except UserError as error:
        return PictureOrigin(**stated, unchecked=error.problems[0])


def _content(file: Path | BinaryIO) -> bytes:
    """Return the bytes of a file whose size ``metadata_in`` has checked."""
    if isinstance(file, Path):
        with open_regular(file) as stream:
            return stream.read()
    file.seek(0)
    return file.read()


def _label_of(text: str | None) -> dict[str, Any]:
    """Return the fields of China's implicit label; none for one that is no JSON object."""
    try:
        fields = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
