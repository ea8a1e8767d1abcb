"""The pictures that validation edits: those of ``validation_input``, or of the first pairs. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from longcat.errors import ConfigError
from longcat.model.shape import MOST_RATIO, is_oblong
from longcat.problem import reason_of
from longcat.sampling.encoding.picture_file import MAX_PIXELS
from trainer.config.dataset_options import DatasetConfig
from trainer.config.simpletuner.validation_input import ValidationInput
from trainer.data.captions.language import detect_language
from trainer.data.pictures import inspect
from trainer.data.sample import LinkedPicture, Sample

_LANGUAGES = ("zh", "en", "other")
_PAIRS = 2
"""Most pairs that are taken, of different languages."""


@dataclass(frozen=True, kw_only=True)
class EditedPicture:
    """A picture that validation edits."""

    file: LinkedPicture
    instruction: str
    """Its own; empty if it is only there for other prompts."""


def edited_pictures(given: Sequence[ValidationInput], samples: Sequence[Sample]) -> list[EditedPicture]:
    """Return the given pictures; without any, those of the first pair of each language, of up to two.

    Raises ``ConfigError`` for a picture that cannot be edited, and where there is none.
    """
    if given:
        return [EditedPicture(file=_read(one), instruction=one.prompt) for one in given]
    by_language: dict[str, EditedPicture] = {}
    for sample in samples:
        if sample.reference is not None and not sample.is_prior and not _is_oblong(sample.reference.file):
            made = EditedPicture(file=sample.reference.file, instruction=sample.captions[0])
            by_language.setdefault(detect_language(sample.captions[0]), made)
    if not by_language:
        raise ConfigError(
            "validation_without_picture",
            "the model edits pictures, and there is none to edit in validation",
            remedy="give validation_input, a list of objects with path and prompt; or set validation_disable",
            field="validation_input",
        )
    return [by_language[language] for language in _LANGUAGES if language in by_language][:_PAIRS]


def _read(given: ValidationInput) -> LinkedPicture:
    try:
        content = given.path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ConfigError(
            "validation_picture_unreadable",
            "cannot be read: {cause}",
            remedy="check the path",
            field="validation_input",
            value=str(given.path),
            cause=reason_of(error),
        ) from error
    facts = inspect(content, max_pixels=MAX_PIXELS)
    if facts.problem is not None:
        raise ConfigError.of([facts.problem.within(field="validation_input", value=str(given.path))])
    folder = {"id": "validation_input", "instance_data_dir": str(given.path.parent)}
    file = LinkedPicture(
        key=given.path.name,
        digest=facts.digest,
        width_px=facts.width_px,
        height_px=facts.height_px,
        config=DatasetConfig.model_validate(folder),
    )
    if _is_oblong(file):
        raise ConfigError(
            "validation_picture_too_oblong",
            "has {width} x {height} px, and one side of an edited picture is at most {ratio} times the other",
            remedy="cut it",
            field="validation_input",
            value=str(given.path),
            width=file.width_px,
            height=file.height_px,
            ratio=MOST_RATIO,
        )
    return file


def _is_oblong(file: LinkedPicture) -> bool:
    return is_oblong(width_px=file.width_px, height_px=file.height_px)
