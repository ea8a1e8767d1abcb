"""The prompts of a validation, with everything else that decides their pictures."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from longcat.errors import ConfigError
from longcat.model.precision import Precision
from longcat.model.shape import canvas_within
from longcat.problem import Problem
from trainer.config.distillation import DistillationConfig
from trainer.config.reading.file import read_prompts
from trainer.config.reading.sizes import width_and_height
from trainer.config.simpletuner.validation_input import ValidationInput
from trainer.data.buckets import Bucket
from trainer.data.captions.language import detect_language
from trainer.data.sample import LinkedPicture, PairReference, Sample
from trainer.encode.preparation import Encoders
from trainer.encode.references import PromptInput
from trainer.validation.edited import EditedPicture, edited_pictures

_DEFAULT_PROMPTS = ("一个红苹果", "a red apple")
"""The prompts where the configuration has none and the data no captions."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """The options of validation prompts and their sampling, under their names in ``TrainConfig``."""

    validation_disable: bool
    validation_prompt: str
    validation_prompts: tuple[str, ...]
    validation_base_prompts: tuple[str, ...]
    user_prompt_library: Path | None
    validation_negative_prompt: str
    validation_resolution: tuple[str, ...]
    validation_guidance: float | None
    validation_num_inference_steps: int | None
    validation_seed: int
    validation_input: tuple[ValidationInput, ...]
    """Pictures to edit, of a model that edits."""
    precision: Precision
    distillation: DistillationConfig | None
    """With it, pictures have the student's steps and no guidance by default."""


@dataclass(frozen=True, kw_only=True)
class ValidationPrompt:
    """One prompt at one size, sampled in every validation with the same seed."""

    prompt: str
    negative_prompt: str
    width_px: int
    height_px: int
    steps: int
    guidance_scale: float
    seed: int
    model: str
    """The base's hash and precisions: pictures of another base cannot be compared."""
    is_base: bool
    """True for a prompt that has nothing to do with the training data: it shows what the training damaged."""
    reference: PairReference | None = None
    """The picture that it edits; None for text-to-image."""

    @property
    def facts(self) -> dict[str, object]:
        """All that decides its pictures, as JSON: the picture that it edits by its content."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "reference"}
        return own if self.reference is None else own | {"reference": self.reference.identity}

    @property
    def name(self) -> str:
        """The file name of its pictures, which follows from all fields."""
        digest = hashlib.sha256(json.dumps(self.facts, ensure_ascii=False).encode()).hexdigest()[:10]
        return f"{self.width_px}x{self.height_px}-{digest}.png"


def validation_prompts(
    settings: PromptSettings, encoders: Encoders, samples: Sequence[Sample]
) -> tuple[ValidationPrompt, ...]:
    """Return the prompts of a validation. Without configured ones, they are a caption of each language in the data.

    A model that edits has pictures with them: those of ``validation_input``, or of the first pairs in ``samples``. Raises
    ``ConfigError`` for a size that the model does not generate, and for pictures that it cannot edit.
    """
    if settings.validation_disable:
        return ()
    texts = [settings.validation_prompt] if settings.validation_prompt else []
    texts += settings.validation_prompts
    if settings.user_prompt_library is not None:
        texts += read_prompts(settings.user_prompt_library)
    sizes = _sizes(settings, encoders)
    if encoders.flavour.settings.edits:
        edited = edited_pictures(settings.validation_input, samples)
        shown = _edits(settings, edited, texts)
    else:
        shown = [(text, False, None) for text in texts or _from_captions(samples)]
        shown += [(text, True, None) for text in settings.validation_base_prompts]
    return tuple(
        _prompt(settings, encoders, text, _size_of(file, size, encoders), is_base=is_base, file=file)
        for text, is_base, file in shown
        for size in sizes
    )


_Shown = list[tuple[str, bool, LinkedPicture | None]]
"""Texts, whether they have nothing to do with the training, and the pictures that they edit."""


def _edits(settings: PromptSettings, edited: Sequence[EditedPicture], texts: Sequence[str]) -> _Shown:
    """Return the pictures' own instructions, unless there are others for the first pair, and those others."""
    first = edited[0].file
    own = [(of.instruction, False, of.file) for of in edited if of.instruction]
    asked = [(text, False, first) for text in texts]
    if asked and not settings.validation_input:
        own = []
    return [*own, *asked, *((text, True, first) for text in settings.validation_base_prompts)]


def _sizes(settings: PromptSettings, encoders: Encoders) -> list[tuple[int, int]]:
    """Return the configured sizes, or the model's default size."""
    defaults = encoders.flavour.settings
    side = defaults.default_size_px
    sizes = [width_and_height(size) for size in settings.validation_resolution] or [(side, side)]
    for width, height in sizes:
        if width * height > defaults.max_pixels:
            raise ConfigError(
                "validation_size_too_large",
                "{size} has more pixels than this model generates, {most}",
                remedy="give a smaller size",
                field="validation_resolution",
                value=", ".join(settings.validation_resolution),
                size=f"{width}x{height}",
                most=defaults.max_pixels,
            )
    return sizes


def _size_of(file: LinkedPicture | None, size: tuple[int, int], encoders: Encoders) -> Bucket:
    """Return the size of a validation picture: that of the canvas for the picture that it edits, of the same area."""
    width, height = size
    if file is not None:
        width, height = canvas_within(
            width_px=file.width_px,
            height_px=file.height_px,
            area_px=width * height,
            max_pixels=encoders.flavour.settings.max_pixels,
        )
    return Bucket(width_px=width, height_px=height)


def _prompt(
    settings: PromptSettings, encoders: Encoders, text: str, size: Bucket, *, is_base: bool, file: LinkedPicture | None
) -> ValidationPrompt:
    """Return a prompt with the model's defaults in place of settings that are not given."""
    defaults = encoders.flavour.settings
    steps, guidance = defaults.default_steps, defaults.default_guidance_scale
    if settings.distillation is not None:
        steps, guidance = settings.distillation.steps, 1.0
    if settings.validation_guidance is not None:
        guidance = settings.validation_guidance
    model = (encoders.flavour.hash, settings.precision, encoders.text_encoder_precision, encoders.dtype)
    return ValidationPrompt(
        prompt=text,
        negative_prompt=settings.validation_negative_prompt,
        width_px=size.width_px,
        height_px=size.height_px,
        steps=settings.validation_num_inference_steps or steps,
        guidance_scale=guidance,
        seed=settings.validation_seed,
        model=", ".join(map(str, model)),
        is_base=is_base,
        reference=None if file is None else PairReference(file=file, bucket=size),
    )


def inputs_of_prompts(prompts: Sequence[ValidationPrompt]) -> list[PromptInput]:
    """Return every text whose embedding the prompts need, with the picture that it is seen with."""
    return [
        PromptInput(text, prompt.reference) for prompt in prompts for text in (prompt.prompt, prompt.negative_prompt)
    ]


def references_of_prompts(prompts: Sequence[ValidationPrompt]) -> list[PairReference]:
    """Return the pictures that the prompts edit."""
    return [prompt.reference for prompt in prompts if prompt.reference is not None]


def language_warning(prompts: Sequence[ValidationPrompt]) -> Problem | None:
    """Return a warning if the prompts are all in one language: they do not show what the other language lost."""
    languages = {detect_language(prompt.prompt) for prompt in prompts if not prompt.is_base}
    if not languages or {"zh", "en"} <= languages:
        return None
    if "zh" not in languages:
        return Problem(
            code="validation_without_chinese",
            template="none is in Chinese, and the model is bilingual",
            remedy_template="add a Chinese prompt, to see that it still reads Chinese",
            field="validation_prompts",
        )
    return Problem(
        code="validation_without_english",
        template="none is in English, and the model is bilingual",
        remedy_template="add an English prompt, to see that it still reads English",
        field="validation_prompts",
    )


def _from_captions(samples: Sequence[Sample]) -> list[str]:
    """Return a caption of each of up to two languages, of the pictures that the adapter learns."""
    captions = [sample.captions[0] for sample in samples if not sample.is_prior]
    by_language = {detect_language(caption): caption for caption in reversed(captions)}
    chosen = [by_language[language] for language in ("zh", "en", "other") if language in by_language]
    return chosen[:2] or list(_DEFAULT_PROMPTS)
