"""A form of ``TrainConfig``: fields in groups, the typed options, and the problems of each field. No torch."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from longcat.errors import ConfigError
from longcat.problem import Problem
from longcat.validation import names_of
from trainer.config.options import TrainConfig
from trainer.config.reading.file import make_config
from trainer.config.reading.json_text import parse_json
from trainer.config.simpletuner.options import our_name, split_foreign

Kind = Literal["text", "number", "integer", "switch", "choice", "lines", "json"]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "pictures": ("instance_data_dir", "adapter_name", "trigger_words"),
    "basic": (
        "model_family", "model_flavour", "caption_strategy", "resolution", "lora_rank", "learning_rate",
        "train_batch_size", "max_train_steps", "validation_prompts",
    ),
    "memory": (
        "base_model_precision", "text_encoder_1_precision", "mixed_precision", "gradient_checkpointing",
        "gradient_checkpointing_interval", "gradient_accumulation_steps", "enable_group_offload", "group_offload_type",
        "group_offload_blocks_per_group", "fsdp_enable", "vae_batch_size", "device",
    ),
    "adapter": (
        "model_type", "lora_type", "lora_alpha", "lora_dropout", "lora_targets", "lora_init_type", "use_rslora", "use_dora",
        "lycoris_config", "init_lora",
    ),
    "data": (
        "data_backend_config", "resolution_type", "aspect_bucket_alignment", "caption_dropout_probability",
        "masked_loss_probability", "max_image_pixels", "background_colour", "distillation",
    ),
    "training": (
        "num_train_epochs", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_end", "optimizer",
        "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "grad_clip_method",
        "flow_schedule_shift", "use_ema", "ema_decay", "seed",
    ),
    "checkpoints": ("checkpointing_steps", "checkpoints_total_limit"),
    "validation": (
        "validation_disable", "validation_prompt", "user_prompt_library", "validation_base_prompts",
        "validation_negative_prompt", "validation_resolution", "validation_guidance", "validation_num_inference_steps",
        "validation_seed", "validation_steps", "validation_min_change", "validation_max_drift", "validation_input",
    ),
    "report": (
        "eval_share", "eval_dataset_id", "num_eval_images", "eval_steps_interval", "publish_checkpoint",
        "early_stopping_patience", "publish_min_improvement", "publish_max_overfit", "publish_max_copies",
    ),
    "records": ("report_to", "tracker_project_name", "tracker_run_name", "metrics_port", "pushgateway_url"),
    "model": ("pretrained_model_name_or_path", "revision"),
    "publishing": ("publish_to", "publish_endpoint_url"),
}  # fmt: skip
"""Fields by topic; the first group is open, the others are folded."""
SET_BY_STUDIO = frozenset({"output_dir", "cache_dir", "resume_from_checkpoint"})
"""Fields that the executor of a job sets."""
SUGGESTIONS: Mapping[str, tuple[str, ...]] = {
    "model_flavour": ("final", "dev", "edit", "edit-turbo", "embedded"),
    "base_model_precision": ("no_change", "auto", "int8-quanto", "int4-quanto", "int8-torchao", "fp8-torchao", "fp8-quanto"),
    "text_encoder_1_precision": ("no_change", "auto", "int8-quanto", "int4-quanto", "int8-torchao", "fp8-torchao"),
    "caption_strategy": ("textfile", "filename", "csv", "json", "jsonl"),
    "device": ("auto", "cpu", "cuda", "mps"),
}  # fmt: skip
"""Usual values of text fields."""
CLOSED = frozenset({"model_flavour", "base_model_precision", "text_encoder_1_precision", "caption_strategy"})
"""Those of them that allow no other value, except one that is set already."""
_IN_ANOTHER_FILE: Mapping[str, Problem] = {
    "data_backend_config": Problem(
        code="imported_datasets_in_another_file", template="names another file",
        remedy_template="put the list of that file in its place",
    ),
    "lycoris_config": Problem(
        code="imported_lycoris_in_another_file", template="names another file",
        remedy_template="put the object of that file in its place",
    ),
}  # fmt: skip
"""Problems of options that name a file, which the form does not read."""
IN_ANOTHER_FILE = frozenset(problem.code for problem in _IN_ANOTHER_FILE.values())
"""Codes of the problems of imported options that the form does not take over."""
_FILE_NAME = re.compile(r"""["']?(?P<name>[^\s"'{}\[\]]+\.jsonc?)["']?""")
_ITEMS = {"validation_prompts", "validation_base_prompts"}
"""Fields with a list, one item a line."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the form."""

    name: str
    kind: Kind
    help: str
    """The option's help text in English."""
    choices: tuple[str, ...]
    default: str
    """The default as typed text."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The result of reading a form or a file."""

    options: Mapping[str, Any]
    """Options by name; options at their default are left out."""
    config: TrainConfig | None
    """None if there are problems."""
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = field(default=())
    """Problems of options that have no effect."""

    def with_problems(self, problems: Iterable[Problem]) -> "Reading":
        """Return a reading with these problems added, and without a configuration."""
        return replace(self, config=None, problems=tuple(problems))


@lru_cache(maxsize=1)
def fields() -> Mapping[str, Field]:
    """Return the fields of the form, by name."""
    return {name: _field(name, TrainConfig.model_fields[name]) for names in GROUPS.values() for name in names}


def read_form(values: Mapping[str, str]) -> Reading:
    """Parse the typed texts by field. A field that is empty, or at its default, sets no option."""
    options: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, about in fields().items():
        text = values.get(name, "").strip() if about.kind != "switch" else values.get(name, "")
        if about.kind == "switch":
            if (given := text in ("on", "true")) != (about.default == "true"):
                options[name] = given
        elif name in _IN_ANOTHER_FILE and (file := _FILE_NAME.fullmatch(text)):
            problems.append(_IN_ANOTHER_FILE[name].within(field=name, value=file["name"]))
        elif text and _plain(text) != _plain(about.default):
            try:
                options[name] = _parsed(about, text)
            except ConfigError as error:
                problems += error.within(field=name).problems
    return _joined(problems, _checked(options, ()))


def read_file(text: str) -> Reading:
    """Parse a ``config.json``, ours or SimpleTuner's, with ``//`` comments. Raises ``ConfigError``."""
    parsed = parse_json(text)
    if not isinstance(parsed, dict):
        raise ConfigError(
            "imported_file_not_object", "the file is not a JSON object", remedy="give a JSON object of options"
        )
    given = {str(key).removeprefix("--"): value for key, value in parsed.items()}
    supported, notes, problems = split_foreign(given)
    options = {name: value for name, value in supported.items() if value is not None}
    for name, problem in _IN_ANOTHER_FILE.items():
        if isinstance(options.get(name), str):
            problems.append(problem.within(field=name, value=options.pop(name)))
    return _joined(problems, _checked(options, notes))


def as_typed(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options as the form shows them, defaults included."""
    return {
        name: _typed(about, options[name]) if name in options else about.default for name, about in fields().items()
    }


def as_file(options: Mapping[str, Any]) -> str:
    """Return the options as a ``config.json``, including the model's name, which other programs need."""
    first = {"model_type": "lora", "model_family": "longcat_image", "model_flavour": "final"}
    return json.dumps(first | dict(options), ensure_ascii=False, indent=2) + "\n"


def _checked(options: Mapping[str, Any], notes: Sequence[Problem]) -> Reading:
    config, warnings, problems = make_config(options)
    return Reading(options=options, config=config, problems=tuple(problems), notes=(*notes, *warnings))


def _joined(problems: Sequence[Problem], reading: Reading) -> Reading:
    """Return a reading with the problems found before it. An option that could not be read is not also missing."""
    unread = {field_of(problem) for problem in problems} - {""}
    others = [problem for problem in reading.problems if field_of(problem) not in unread]
    return reading.with_problems([*problems, *others]) if problems else reading


def field_of(problem: Problem) -> str:
    """Return the form's field that a problem is about; empty if there is none."""
    name = problem.field.partition(".")[0]
    return our_name(name) if name in names_of(TrainConfig) else ""


def _field(name: str, about: FieldInfo) -> Field:
    kind, choices = _kind(name, about.annotation)
    shown = Field(name=name, kind=kind, help=" ".join((about.description or "").split()), choices=choices, default="")
    default = about.get_default(call_default_factory=True)
    return Field(name=name, kind=kind, help=shown.help, choices=choices, default=_typed(shown, default))


def _kind(name: str, annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    if name in ("data_backend_config", "lycoris_config", "distillation", "validation_input"):
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
    """Return the member types of a union, without their constraints."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return _members(get_args(annotation)[0]) if hasattr(annotation, "__metadata__") else [annotation]


def _typed(about: Field, value: Any) -> str:
    if value is None:
        return ""
    if about.kind == "json":
        given = [_as_json(entry) for entry in value] if isinstance(value, list | tuple) else _as_json(value)
        return json.dumps(given, ensure_ascii=False, indent=2) if given else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ("\n" if about.kind == "lines" else ",").join(_number(item) for item in value)
    return _number(value)


def _as_json(entry: Any) -> Any:
    return entry.model_dump(mode="json", exclude_defaults=True) if isinstance(entry, BaseModel) else entry


def _number(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _parsed(about: Field, text: str) -> Any:
    match about.kind:
        case "integer" | "number":
            try:
                return json.loads(text)
            except ValueError:
                return text  # the configuration reports the problem
        case "lines":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "json":
            return parse_json(text)
        case "choice" if text in ("true", "false") and "true" in about.choices:
            return text == "true"
    if about.name == "lora_targets" and text not in about.choices:
        return [part.strip() for part in text.split(",") if part.strip()]
    if about.name == "flow_schedule_shift" and text != "auto":
        return _parsed(Field(name="", kind="number", help="", choices=(), default=""), text)
    return text


def _plain(text: str) -> str:
    """Return the text with plain line ends: browsers send CRLF."""
    return "\n".join(text.split("\n")).replace("\r", "").strip()
