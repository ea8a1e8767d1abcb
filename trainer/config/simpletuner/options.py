"""Options of SimpleTuner that are no options here: ignored with a reason, translated, or refused with a remedy. No torch."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from longcat.problem import Problem
from longcat.validation import names_of, unknown_field
from trainer.config.options import TrainConfig
from trainer.config.simpletuner.ignored import SWITCH_IS_OFF, grouped, is_off, reason_to_ignore

_KEYS_FILE = Path(__file__).parent / "keys.txt"
_UNSUPPORTED = Problem(
    code="simpletuner_option", template="an option of SimpleTuner that is not supported", remedy_template="leave it out"
)
_INSTEAD: Mapping[str, Problem] = {
    "push_to_hub": Problem(
        code="push_to_hub_unsupported", template="adapters are not published to a hub",
        remedy_template="publish with publish_to",
    ),
    "train_text_encoder": Problem(
        code="train_text_encoder_unsupported", template="the text encoder is not trained", remedy_template="leave it out"
    ),
    "quantize_activations": Problem(
        code="quantize_activations_unsupported", template="training quantizes weights alone",
        remedy_template="leave it out",
    ),
    "fsdp_version": Problem(
        code="fsdp_version_unsupported", template="FSDP has no other options", remedy_template="use fsdp_enable alone"
    ),
    "fsdp_reshard_after_forward": Problem(
        code="fsdp_reshard_unsupported", template="FSDP has no other options", remedy_template="use fsdp_enable alone"
    ),
    "deepspeed_config": Problem(
        code="deepspeed_unsupported", template="DeepSpeed is not supported",
        remedy_template="use fsdp_enable with torchrun, or int8 weights, with which the base fits most devices",
    ),
    "peft_lora_target_modules": Problem(
        code="peft_targets_unsupported", template="an option of SimpleTuner that has another name here",
        remedy_template="use lora_targets",
    ),
    "optimizer_config": Problem(
        code="optimizer_config_unsupported", template="an option of SimpleTuner that has other names here",
        remedy_template="use adam_weight_decay, adam_epsilon, adam_beta1 and adam_beta2",
    ),
    "lora_format": Problem(
        code="lora_format_unsupported", template="adapters are saved in diffusers' format",
        remedy_template="leave it out; `lithograph adapters export --format` writes the other formats",
    ),
    "num_validation_images": Problem(
        code="num_validation_images_unsupported", template="each prompt is generated once at each size",
        remedy_template="give more prompts or sizes",
    ),
    "push_checkpoints_to_hub": Problem(
        code="push_checkpoints_unsupported", template="checkpoints are not published to a hub",
        remedy_template="leave it out; publish_to publishes the adapter",
    ),
    "checkpoint_epoch_interval": Problem(
        code="epoch_interval_unsupported", template="intervals are counted in steps",
        remedy_template="use checkpointing_steps",
    ),
    "validation_epoch_interval": Problem(
        code="validation_epochs_unsupported", template="intervals are counted in steps",
        remedy_template="use validation_steps",
    ),
    "validation_prompt_library": Problem(
        code="prompt_library_unsupported", template="there is no built-in library of prompts",
        remedy_template="give your own file with user_prompt_library",
    ),
    "validation_using_datasets": Problem(
        code="validation_datasets_unsupported",
        template="validation generates pictures from prompts, or edits those of validation_input or of the first pairs",
        remedy_template="leave it out",
    ),
    "lr_scale": Problem(
        code="lr_scale_unsupported", template="the learning rate is taken as it is",
        remedy_template="give learning_rate multiplied by batch size, accumulation and processes",
    ),
    **{
        name: Problem(
            code="dataset_option_unsupported", template="an option of each dataset here",
            remedy_template="give it in the entry of data_backend_config",
        )
        for name in ("disable_multiline_split", "instance_prompt", "max_upscale_threshold", "maximum_image_size",
                     "minimum_image_size", "only_instance_prompt", "prepend_instance_prompt", "target_downsample_size")
    },
}  # fmt: skip
"""Problems by option, where the remedy is more than to leave it out."""


def split_foreign(options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Problem, ...], list[Problem]]:
    """Return the supported options under our names, a warning for each reason to ignore others, and the others' problems."""
    options, problems = _by_one_name(options)
    options = _translated(options)
    known, supported = names_of(TrainConfig), {}
    ignored: dict[str, Problem] = {}
    for key, value in options.items():
        if key == "lycoris_config" and options.get("lora_type", "standard") == "standard":
            ignored[key] = SWITCH_IS_OFF
        elif key in known:
            supported[key] = value
        elif (reason := reason_to_ignore(key, value, options, known=key in foreign_keys())) is not None:
            ignored[key] = reason
        elif key not in foreign_keys():
            problems.append(_unknown(key, value))
        else:
            problems.append(_INSTEAD.get(key, _UNSUPPORTED).within(field=key, value=value))
    return supported, grouped(ignored), problems


def our_name(name: str) -> str:
    """Return an option's first name for any of its names, and any other name as it is."""
    return _first_names().get(name, name)


@lru_cache(maxsize=1)
def foreign_keys() -> frozenset[str]:
    """Return the options of SimpleTuner that are not options here."""
    return frozenset(_KEYS_FILE.read_text(encoding="utf-8").split()).difference(names_of(TrainConfig))


@lru_cache(maxsize=1)
def _first_names() -> dict[str, str]:
    return {
        other: name
        for name, about in TrainConfig.model_fields.items()
        for other in getattr(about.validation_alias, "choices", ())
    }


def _by_one_name(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return options under their first names, and a problem for each that is given twice with different values."""
    found: dict[str, Any] = {}
    problems = []
    for key, value in options.items():
        name = our_name(key)
        if name in found and found[name] != value:
            problems.append(
                Problem(
                    code="option_given_twice", template="given as {name} too, with the value {other}",
                    remedy_template="leave out one of the two", field=key, value=value,
                    details={"name": name if key != name else _other_name(name, options), "other": found[name]},
                )
            )  # fmt: skip
        found[name] = value
    return found, problems


def _other_name(name: str, options: Iterable[str]) -> str:
    return next(other for other in options if other != name and our_name(other) == name)


def _translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with SimpleTuner's shift in our form: 0 is no shift, and it follows the size on demand."""
    shift = options.get("flow_schedule_shift")
    follows_size = not is_off(options.get("flow_schedule_auto_shift"))
    kept = {key: value for key, value in options.items() if key != "flow_schedule_auto_shift"}
    if is_off(shift) and follows_size:
        return {**kept, "flow_schedule_shift": "auto"}
    if shift is not None and is_off(shift):
        return {**kept, "flow_schedule_shift": 1.0}
    return kept


def _unknown(key: str, value: object) -> Problem:
    problem = unknown_field(key, value, [*names_of(TrainConfig), *foreign_keys()])
    if problem.details.get("nearest") in names_of(TrainConfig):
        return problem
    return Problem(  # a list of all options would be too long
        code="unknown_option", template="unknown option", remedy_template="see the configuration reference",
        field=key, value=value,
    )  # fmt: skip
