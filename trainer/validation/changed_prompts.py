"""Prompts of the next validation: the configured ones, or those that were changed while the training runs."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from longcat.errors import UserError
from longcat.problem import Problem
from trainer.data.sample import Sample
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders
from trainer.encode.references import encode_prompts
from trainer.record.prompts_file import read_changed_prompts
from trainer.validation.prompts import PromptSettings, ValidationPrompt, inputs_of_prompts, validation_prompts


def with_changes(settings: PromptSettings, output_dir: Path) -> PromptSettings:
    """Return the settings with the changed prompts, if there are any. Raises ``DataError``.

    Pictures that are edited stay, without their own instructions.
    """
    changed = read_changed_prompts(output_dir)
    if changed is None:
        return settings
    pictures = tuple(given.model_copy(update={"prompt": ""}) for given in settings.validation_input)
    return replace(
        settings, validation_prompt="", validation_prompts=changed, user_prompt_library=None, validation_input=pictures
    )


class NextPrompts:
    """The prompts of each validation, with their embeddings in the cache."""

    def __init__(
        self,
        settings: PromptSettings,
        output_dir: Path,
        encoders: Encoders,
        cache: Cache,
        samples: Sequence[Sample],
        prompts: tuple[ValidationPrompt, ...],
        *,
        warn: Callable[[Problem], None],
    ) -> None:
        """``prompts`` are those whose embeddings are there already."""
        self._settings, self._output_dir = settings, output_dir
        self._encoders, self._cache, self._samples = encoders, cache, samples
        self._prompts, self._warn = prompts, warn
        self._refused: PromptSettings | None = None

    def __call__(self) -> tuple[ValidationPrompt, ...]:
        """Return the prompts of now; those of before, with a warning, where new ones cannot be used.

        New prompts need the text encoder, which is loaded for them beside the training, and let go again.
        """
        try:
            settings = with_changes(self._settings, self._output_dir)
            prompts = validation_prompts(settings, self._encoders, self._samples)
            if prompts == self._prompts or settings == self._refused:
                return self._prompts
            self._refused = settings  # until it has turned out well
            encode_prompts(self._encoders, self._cache, inputs_of_prompts(prompts), lambda *_: None)
        except (UserError, torch.OutOfMemoryError) as error:
            cause = error.problems[0] if isinstance(error, UserError) else _out_of_memory()
            self._warn(_unused(cause))
            return self._prompts
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self._refused = None
        self._prompts = prompts
        return prompts


def _unused(cause: Problem) -> Problem:
    return Problem(
        code="changed_prompts_not_used", template="the changed validation prompts are not used: {cause}",
        remedy_template="change them again", field="validation_prompts", details={"cause": cause},
    )  # fmt: skip


def _out_of_memory() -> Problem:
    return Problem(
        code="no_memory_for_prompts",
        template="the text encoder does not fit beside the training",
        remedy_template="stop and resume the training, which embeds them before it trains",
    )
