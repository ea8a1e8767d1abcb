"""A form of ``TrainConfig``: fields in groups, what people typed, and each mistake beside its field. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import json5
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from longcat.errors import ConfigError
from trainer.config import TrainConfig
from trainer.config_file import known_keys, problems_of, without_foreign

Kind = Literal["text", "number", "integer", "switch", "choice", "lines", "json"]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "basic": (
        "model_family", "model_flavour", "adapter_name", "instance_data_dir", "caption_strategy", "resolution",
        "lora_rank", "learning_rate", "train_batch_size", "max_train_steps", "validation_prompts",
    ),
    "memory": (
        "base_model_precision", "text_encoder_1_precision", "mixed_precision", "gradient_checkpointing",
        "gradient_checkpointing_interval", "gradient_accumulation_steps", "enable_group_offload", "group_offload_type",
        "group_offload_blocks_per_group", "fsdp_enable", "vae_batch_size", "device",
    ),
    "adapter": (
        "model_type", "lora_type", "lora_alpha", "lora_dropout", "lora_targets", "lora_init_type", "use_rslora", "use_dora",
        "init_lora",
    ),
    "data": (
        "data_backend_config", "resolution_type", "aspect_bucket_alignment", "caption_dropout_probability",
        "max_image_pixels", "background_colour",
    ),
    "training": (
        "num_train_epochs", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_end", "optimizer",
        "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "flow_schedule_shift", "use_ema",
        "ema_decay", "seed",
    ),
    "checkpoints": ("checkpointing_steps", "checkpoints_total_limit"),
    "validation": (
        "validation_disable", "validation_prompt", "user_prompt_library", "validation_base_prompts",
        "validation_negative_prompt", "validation_resolution", "validation_guidance", "validation_num_inference_steps",
        "validation_seed", "validation_steps", "validation_min_change", "validation_max_drift",
    ),
    "records": ("report_to", "tracker_run_name", "metrics_port", "pushgateway_url"),
    "model": ("pretrained_model_name_or_path", "revision"),
    "publishing": ("publish_to", "publish_endpoint_url"),
}  # fmt: skip
"""Fields as people look for them; the first group is open, the others are folded."""
SET_BY_STUDIO = frozenset({"output_dir", "cache_dir", "resume_from_checkpoint"})
"""Fields that a job's place decides."""
SUGGESTIONS: Mapping[str, tuple[str, ...]] = {
    "model_flavour": ("final", "dev", "embedded"),
    "base_model_precision": ("no_change", "auto", "int8-quanto", "int4-quanto", "int8-torchao", "fp8-torchao", "fp8-quanto"),
    "text_encoder_1_precision": ("no_change", "auto", "int8-quanto", "int4-quanto", "int8-torchao", "fp8-torchao"),
    "caption_strategy": ("textfile", "filename", "csv", "json", "jsonl"),
    "device": ("auto", "cpu", "cuda", "mps"),
}  # fmt: skip
"""Of fields that are texts to the configuration, what they usually are."""
CLOSED = frozenset({"model_flavour", "base_model_precision", "text_encoder_1_precision", "caption_strategy"})
"""Those of them that can be nothing else, unless another value is there already."""
_ITEMS = {"validation_prompts", "validation_base_prompts"}
"""Lists, an item a line."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the form."""

    name: str
    kind: Kind
    help: str
    """In English, as the configuration has it."""
    choices: tuple[str, ...]
    default: str
    """As it would be typed."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """What is wrong with a field, or with the whole if ``name`` is empty."""

    name: str
    message: str
    """In English, with the value and what to give."""
    kind: str = ""
    """pydantic's name for it, or ours: what it is said by in other languages."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """For that: ``value`` is what was given."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What came of what was typed."""

    said: Mapping[str, Any]
    """Options by name, those at their default left out."""
    config: TrainConfig | None
    """None if something is wrong."""
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = field(default=())
    """Options that ask for nothing here."""


@lru_cache(maxsize=1)
def fields() -> Mapping[str, Field]:
    """All of the form, by name."""
    return {name: _field(name, TrainConfig.model_fields[name]) for names in GROUPS.values() for name in names}


def read_form(values: Mapping[str, str]) -> Reading:
    """What was typed, by field. A field left empty, or at its default, is not said."""
    said: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for name, about in fields().items():
        text = values.get(name, "").strip() if about.kind != "switch" else values.get(name, "")
        if about.kind == "switch":
            if (given := text in ("on", "true")) != (about.default == "true"):
                said[name] = given
        elif text and _plain(text) != _plain(about.default):
            try:
                said[name] = _parsed(about, text)
            except ValueError as error:
                mistakes.append(Mistake(name=name, message=str(error), kind="not_json"))
    reading = _checked(said, ())
    if not mistakes:
        return reading
    return Reading(said=said, config=None, mistakes=(*mistakes, *reading.mistakes))


def read_file(text: str) -> Reading:
    """A ``config.json``, ours or SimpleTuner's; ``//`` comments are allowed. Raises ``ConfigError`` if it is none at all."""
    try:
        said = json5.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        where = str(error).replace("<string>:", "line ")
        raise ConfigError(f"the file is not JSON (// comments are allowed): {where}") from error
    if not isinstance(said, dict):
        raise ConfigError(f"the file holds a {type(said).__name__}; it has to be a JSON object of options")
    said = {str(key).removeprefix("--"): value for key, value in said.items()}
    kept, notes, wrong = without_foreign(said)
    kept = {_our_name(name): value for name, value in kept.items() if value is not None}
    if isinstance(kept.get("data_backend_config"), str):
        path = kept.pop("data_backend_config")
        wrong.append(f"data_backend_config {path!r}: names another file; put its list in its place")
    reading = _checked(kept, notes)
    if not wrong:
        return reading
    return Reading(
        said=kept,
        config=None,
        mistakes=(*(Mistake(name="", message=message) for message in wrong), *reading.mistakes),
        notes=notes,
    )


def as_typed(said: Mapping[str, Any]) -> dict[str, str]:
    """Options as the form shows them, defaults included."""
    return {name: _typed(about, said[name]) if name in said else about.default for name, about in fields().items()}


def as_file(said: Mapping[str, Any]) -> str:
    """The options as a ``config.json``, with the model's, which others want to read."""
    first = {"model_type": "lora", "model_family": "longcat_image", "model_flavour": "final"}
    return json.dumps(first | dict(said), ensure_ascii=False, indent=2) + "\n"


def _checked(said: Mapping[str, Any], notes: Sequence[str]) -> Reading:
    try:
        config = TrainConfig.model_validate(dict(said))
    except ValidationError as error:
        mistakes = tuple(
            Mistake(
                name=_field_of(where),
                message=message,
                kind=part["type"],
                values={"value": part["input"], **part.get("ctx", {})},
            )
            for part, (where, message) in zip(error.errors(), problems_of(error), strict=True)
        )
        return Reading(said=said, config=None, mistakes=mistakes, notes=tuple(notes))
    return Reading(said=said, config=config, notes=tuple(notes))


def _field_of(where: str) -> str:
    name = where.partition(".")[0]
    return _our_name(name) if name in known_keys(TrainConfig) else ""


def _our_name(name: str) -> str:
    """A field's own name for one that it also goes by."""
    for ours, about in TrainConfig.model_fields.items():
        if name in getattr(about.validation_alias, "choices", ()):
            return ours
    return name


def _field(name: str, about: FieldInfo) -> Field:
    kind, choices = _kind(name, about.annotation)
    shown = Field(name=name, kind=kind, help=" ".join((about.description or "").split()), choices=choices, default="")
    default = about.get_default(call_default_factory=True)
    return Field(name=name, kind=kind, help=shown.help, choices=choices, default=_typed(shown, default))


def _kind(name: str, annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    if name == "data_backend_config":
        return "json", ()
    if name in _ITEMS:
        return "lines", ()
    if name in SUGGESTIONS:
        return ("choice" if name in CLOSED else "text"), SUGGESTIONS[name]
    members = [member for member in _members(annotation) if member is not NoneType]
    if members == [bool]:
        return "switch", ()
    words = tuple(
        str(word) for member in members for word in (get_args(member) if get_origin(member) is Literal else ())
    )
    if bool in members:
        return "choice", ("false", "true", *words)
    if words and all(get_origin(member) is Literal for member in members):
        return "choice", words
    if members == [int]:
        return "integer", ()
    return ("number", ()) if members == [float] else ("text", words)


def _members(annotation: Any) -> list[Any]:
    """The types that a union is of, without their constraints."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return _members(get_args(annotation)[0]) if hasattr(annotation, "__metadata__") else [annotation]


def _typed(about: Field, value: Any) -> str:
    if value is None:
        return ""
    if about.kind == "json":
        given = [
            entry if isinstance(entry, dict) else entry.model_dump(mode="json", exclude_defaults=True)
            for entry in value
        ]
        return json.dumps(given, ensure_ascii=False, indent=2) if given else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ("\n" if about.kind == "lines" else ",").join(_number(item) for item in value)
    return _number(value)


def _number(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _parsed(about: Field, text: str) -> Any:
    match about.kind:
        case "integer" | "number":
            try:
                return json.loads(text)
            except ValueError:
                return text  # what is wrong with it is the configuration's to say
        case "lines":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "json":
            try:
                return json5.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"is not JSON: {error}") from error
        case "choice" if text in ("true", "false") and "true" in about.choices:
            return text == "true"
    if about.name == "lora_targets" and text not in about.choices:
        return [part.strip() for part in text.split(",") if part.strip()]
    if about.name == "flow_schedule_shift" and text != "auto":
        return _parsed(Field(name="", kind="number", help="", choices=(), default=""), text)
    return text


def _plain(text: str) -> str:
    """One form for texts that say the same: line ends are the browser's."""
    return "\n".join(text.split("\n")).replace("\r", "").strip()
