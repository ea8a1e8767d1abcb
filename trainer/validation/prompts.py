"""The prompts of a validation, with everything else that decides their pictures."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from longcat.errors import ConfigError
from longcat.model.precision import Precision
from longcat.problem import Problem
from trainer.config.dataset_options import width_and_height
from trainer.config.distillation import DistillationConfig
from trainer.config.reading.file import read_prompts
from trainer.data.captions.language import detect_language
from trainer.data.sample import Sample
from trainer.encode.preparation import Encoders

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

    @property
    def name(self) -> str:
        """The file name of its pictures, which follows from all fields."""
        digest = hashlib.sha256(json.dumps(asdict(self), ensure_ascii=False).encode()).hexdigest()[:10]
        return f"{self.width_px}x{self.height_px}-{digest}.png"


def validation_prompts(
    settings: PromptSettings, encoders: Encoders, samples: Sequence[Sample]
) -> tuple[ValidationPrompt, ...]:
    """Return the prompts of a validation. Without configured ones, they are a caption of each language in the data.

    Raises ``ConfigError`` for a size that the model does not generate.
    """
    if settings.validation_disable:
        return ()
    defaults = encoders.flavour.settings
    prompts = [settings.validation_prompt] if settings.validation_prompt else []
    prompts += settings.validation_prompts
    if settings.user_prompt_library is not None:
        prompts += read_prompts(settings.user_prompt_library)
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
    steps, guidance = defaults.default_steps, defaults.default_guidance_scale
    if settings.distillation is not None:
        steps, guidance = settings.distillation.steps, 1.0
    if settings.validation_guidance is not None:
        guidance = settings.validation_guidance
    model = (encoders.flavour.hash, settings.precision, encoders.text_encoder_precision, encoders.dtype)
    return tuple(
        ValidationPrompt(
            prompt=prompt,
            negative_prompt=settings.validation_negative_prompt,
            width_px=width,
            height_px=height,
            steps=settings.validation_num_inference_steps or steps,
            guidance_scale=guidance,
            seed=settings.validation_seed,
            model=", ".join(map(str, model)),
            is_base=is_base,
        )
        for is_base, texts in ((False, prompts or _from_captions(samples)), (True, settings.validation_base_prompts))
        for prompt in texts
        for width, height in sizes
    )


def texts_of(prompts: Sequence[ValidationPrompt]) -> list[str]:
    """Return every text whose embedding the prompts need, each once."""
    return list(dict.fromkeys(text for prompt in prompts for text in (prompt.prompt, prompt.negative_prompt)))


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
