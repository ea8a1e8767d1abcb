"""The options of a training, under SimpleTuner's names, validated. No torch: the web page builds its form from it.

``trainer.config.fields`` has the fields, ``trainer.config.reading.file`` reads a file.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import (
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from longcat.adapter.reference import parse_new_name, parse_reference
from longcat.errors import AdapterError, LithographError, PrecisionError, StorageError
from longcat.model.precision import Precision, parse_precision
from longcat.model.published.models import HUB_IDS, published_settings
from longcat.model.shape import GRID_PX
from longcat.problem import Problem
from longcat.storage.address import parse_address
from longcat.validation import ProblemValueError, problems_of
from trainer.config.card_options import card_problems
from trainer.config.consistency import consistency_problems
from trainer.config.dataset_options import DatasetConfig
from trainer.config.fields import TrainFields
from trainer.config.links import editing_problems
from trainer.config.reading.json_text import unusable_text
from trainer.config.reading.sizes import parse_sizes, width_and_height


class TrainConfig(TrainFields):
    """The options of one training."""

    @field_validator("base_model_precision", "text_encoder_1_precision")
    @classmethod
    def _is_precision(cls, given: str) -> str:
        try:
            return given if given == "auto" else parse_precision(given).value
        except PrecisionError as error:
            raise _refuse(error) from error

    @field_validator("optimizer", mode="before")
    @classmethod
    def _by_other_names(cls, given: Any) -> Any:
        return _OPTIMIZER_NAMES.get(given, given) if isinstance(given, str) else given

    @field_validator("resolution", mode="before")
    @classmethod
    def _sizes(cls, given: Any) -> Any:
        return parse_sizes(given)

    @field_validator("validation_prompts", "validation_base_prompts", mode="before")
    @classmethod
    def _prompts(cls, given: Any) -> Any:
        """Take a text for one prompt."""
        return (given,) if isinstance(given, str) else given

    @field_validator("trigger_words", mode="before")
    @classmethod
    def _words(cls, given: Any) -> Any:
        """Read ``ink, 水墨`` or a list."""
        words = re.split("[,，、]", given) if isinstance(given, str) else [] if given is None else given
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            return words
        return tuple(dict.fromkeys(word.strip() for word in words if word.strip()))

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers(cls, given: Any) -> Any:
        """Read ``mlflow,wandb`` or a list; none and nothing are no tracker."""
        names = [] if given is None else given.split(",") if isinstance(given, str) else given
        if not isinstance(names, list | tuple):
            return given
        if not all(isinstance(name, str) for name in names):
            return names
        return tuple(dict.fromkeys(name.strip() for name in names if name.strip() not in ("", "none")))

    @field_validator("validation_resolution", mode="before")
    @classmethod
    def _validation_sizes(cls, given: Any) -> Any:
        if given in (None, ""):
            return ()
        sizes = [size if isinstance(size, str) else f"{size:.0f}x{size:.0f}" for size in parse_sizes(given)]
        for size in sizes:
            width, height = width_and_height(size)
            if not width or not height or width % GRID_PX or height % GRID_PX:
                raise ProblemValueError(
                    Problem(
                        code="validation_size_not_aligned",
                        template="the sides of {size} are not multiples of {multiple} px",
                        remedy_template="give multiples of {multiple}",
                        details={"size": size, "multiple": GRID_PX},
                    )
                )
        return tuple(sizes)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if problem := next(consistency_problems(self), None):
            raise ProblemValueError(problem)
        return self

    @model_validator(mode="after")
    def _has_valid_dataset(self) -> Self:
        """Validate the only dataset here, not when it is first used."""
        try:
            self._single_dataset()
        except ValidationError as error:
            problem = next(problems_of(error, DatasetConfig))
            field = _OPTIONS_BY_DATASET_FIELD.get(problem.field, problem.field)
            value = self.instance_data_dir if field == "instance_data_dir" else problem.value
            raise ProblemValueError(replace(problem, field=field, value=value)) from error
        return self

    @model_validator(mode="after")
    def _has_what_its_model_needs(self) -> Self:
        """Check the published models here; those of directories once they are found."""
        if self.flavour in (*HUB_IDS, *HUB_IDS.values()):
            edits = published_settings(self.flavour).edits
            if problem := next(editing_problems(self, self.datasets, edits=edits), None):
                raise ProblemValueError(problem)
        return self

    @model_validator(mode="after")
    def _card_has_its_pictures(self) -> Self:
        if problem := next(card_problems(self), None):
            raise ProblemValueError(problem)
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, given: Any) -> Any:
        if problem := unusable_text(str(given) if isinstance(given, Path) else given):
            raise ProblemValueError(problem)
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_a_bare_flag(cls, given: Any, info: ValidationInfo) -> Any:
        """Reject ``--learning_rate`` without its value: it is parsed as true, which pydantic would take for 1."""
        types = cls.model_fields[str(info.field_name)].annotation
        if isinstance(given, bool) and bool not in (types, *get_args(types)):
            raise ProblemValueError(
                Problem(code="option_is_not_a_switch", template="not a switch", remedy_template="give it a value")
            )
        return given

    @field_validator("publish_to")
    @classmethod
    def _is_address(cls, given: str | None) -> str | None:
        try:
            if given is not None:
                parse_address(given)
        except StorageError as error:
            raise _refuse(error) from error
        return given

    @field_validator("adapter_name")
    @classmethod
    def _is_name(cls, given: str | None) -> str | None:
        try:
            version = None if given is None else parse_reference(given).version
        except AdapterError as error:
            raise _refuse(error) from error
        if version is not None:
            raise ProblemValueError(
                Problem(
                    code="adapter_name_with_version", template="has a version, which storage assigns",
                    remedy_template="give the name alone",
                )
            )  # fmt: skip
        try:
            return None if given is None else parse_new_name(given)
        except AdapterError as error:
            raise _refuse(error) from error

    @property
    def flavour(self) -> str:
        """The argument of ``longcat.model.flavour.resolve``."""
        return self.pretrained_model_name_or_path or self.model_flavour

    @property
    def datasets(self) -> tuple[DatasetConfig, ...]:
        """The datasets, from ``instance_data_dir`` or ``data_backend_config``; the prompts of a distillation."""
        if self.distillation is not None:
            return (self.distillation.dataset,)
        single = self._single_dataset()
        return self.data_backend_config if single is None else (single,)

    def _single_dataset(self) -> DatasetConfig | None:
        if self.instance_data_dir is None:
            return None
        return DatasetConfig.model_validate(
            {
                "id": "pictures",
                "instance_data_dir": self.instance_data_dir,
                "caption_strategy": self.caption_strategy,
                "trigger_words": self.trigger_words,
                "alpha_colour": self.background_colour,
            }
        )

    @property
    def alpha(self) -> float:
        """The adapter's alpha."""
        return float(self.lora_rank if self.lora_alpha is None else self.lora_alpha)

    @property
    def precision(self) -> Precision:
        """The base's precision, once ``auto`` has been decided."""
        return Precision(self.base_model_precision)


_OPTIONS_BY_DATASET_FIELD = {
    "alpha_colour": "background_colour",
    "aws_bucket_name": "instance_data_dir",
    "": "instance_data_dir",
}
"""Options by the field of the only dataset that they set."""
_OPTIMIZER_NAMES = {
    "adamw_bf16": "adamw",
    "torch-adamw": "adamw",
    "ao-adamw8bit": "adamw8bit",
    "adamw_schedulefree": "adamw-schedulefree",
    "optimi-adamw": "adamw",
}
"""SimpleTuner's names of the same optimizers."""


def _refuse(error: LithographError) -> ProblemValueError:
    """Return the error of a value as one that pydantic passes on, which adds field and value."""
    return ProblemValueError(replace(error.problems[0], field="", value=None))
