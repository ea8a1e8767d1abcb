"""``config.json`` to ``TrainConfig``: comments, flags, environment, SimpleTuner's names, and errors that help. No torch."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import json5
from pydantic import BaseModel, ValidationError

from longcat.errors import ConfigError
from trainer.config import TrainConfig
from trainer.dataset_config import DatasetConfig

_FOREIGN_KEYS = Path(__file__).parent / "simpletuner_keys.txt"
_OFF: tuple[Any, ...] = (None, False, "", "none", "false", "no", 0, "0", (), [])
"""Values with which an option of SimpleTuner's asks for nothing."""
_TYPES = ("bool", "float", "int", "str")
_INSTEAD = {
    "lycoris_config": "train with lora_type standard",
    "push_to_hub": "publish with publish_to",
    "hub_model_id": "publish with publish_to and adapter_name",
    "max_workers": "leave it out: caching needs no tuning",
    "report_to": "use tensorboard or none",
    "train_text_encoder": "the text encoder stays as it is",
    "quantize_activations": "only weights are quantized in training",
    "group_offload_use_stream": "leave it out: streams put back what a group began with, the adapter's values too",
    "fsdp_version": "fsdp_enable is all there is to say",
    "fsdp_reshard_after_forward": "fsdp_enable is all there is to say",
    "deepspeed_config": "use fsdp_enable with torchrun; or int8 weights, with which the base fits most devices",
    "peft_lora_target_modules": "use lora_targets",
    "flow_schedule_auto_shift": 'use flow_schedule_shift "auto"',
    "tokenizer_max_length": "it is 512, as the model was trained",
    "validation_guidance_rescale": "guidance is renormalised as LongCat-Image does",
    "num_validation_images": "give more prompts or sizes",
}


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> tuple[TrainConfig, tuple[str, ...]]:
    """The configuration in a file, changed by ``overrides``, and warnings about keys that ask for nothing here.

    Raises ``ConfigError`` naming every field that is wrong, its value and what to give.
    """
    said: dict[str, Any] = {} if path is None else dict(_read_object(path))
    said = {key.removeprefix("--"): value for key, value in said.items()} | dict(overrides)
    said, warnings, wrong = without_foreign(said)
    base = Path() if path is None else path.parent
    if isinstance(said.get("data_backend_config"), str):
        said["data_backend_config"] = _read_datasets(said["data_backend_config"], base)
    where = "the configuration" if path is None else f"config {path}"
    try:
        config = TrainConfig.model_validate({k: v for k, v in said.items() if v is not None})
    except ValidationError as error:
        wrong += [message for _, message in problems_of(error)]
        raise ConfigError(f"{where}: " + "; ".join(wrong)) from error
    if wrong:
        raise ConfigError(f"{where}: " + "; ".join(wrong))
    return config, warnings


def parse_assignments(arguments: Iterable[str]) -> dict[str, Any]:
    """``--learning_rate 1e-4``, ``--learning_rate=1e-4``, ``learning_rate=1e-4`` and ``--gradient_checkpointing`` by key.

    Values are read as JSON where they are JSON. Raises ``ConfigError`` for anything else.
    """
    said: dict[str, Any] = {}
    waiting: str | None = None
    for argument in arguments:
        is_flag = argument.startswith("--")
        key, equals, value = argument.removeprefix("--").partition("=")
        if waiting is not None and not is_flag:
            said[waiting], waiting = _value(argument), None
            continue
        if not is_flag and not equals:
            raise ConfigError(f"argument {argument!r}: give --key value or key=value")
        key = key.replace("-", "_")
        waiting = None if equals else key
        said[key] = _value(value) if equals else True
    return said


def read_object(path: Path, what: str) -> Any:
    """A JSON file with ``//`` comments. Raises ``ConfigError`` saying ``what`` it was to be."""
    try:
        return json5.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} {path} is not JSON (// comments are allowed): {error}") from error


def read_prompts(path: Path) -> list[str]:
    """A library of prompts: a JSON object of names to prompts. Raises ``ConfigError``."""
    said = read_object(path, "user_prompt_library")
    if not isinstance(said, dict) or not all(isinstance(prompt, str) for prompt in said.values()):
        raise ConfigError(f"user_prompt_library {path} is no JSON object of names to prompts")
    return list(said.values())


def _read_object(path: Path) -> dict[str, Any]:
    said = read_object(path, "config")
    if not isinstance(said, dict):
        raise ConfigError(f"config {path} holds a {type(said).__name__}; it has to be a JSON object of options")
    return said


def _read_datasets(given: str, base: Path) -> Any:
    candidates = [Path(given), base / given]
    path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
    said = read_object(path, "data_backend_config")
    if not isinstance(said, list):
        raise ConfigError(f"data_backend_config {path} holds no list of datasets")
    return said


def without_foreign(said: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """Only what we know, warnings, and what is wrong: what SimpleTuner knows and we do not, unless it asks for nothing."""
    known, kept, warnings, wrong = known_keys(TrainConfig), {}, [], list[str]()
    for key, value in said.items():
        if key in known:
            kept[key] = value
        elif key in foreign_keys() and (value.lower() if isinstance(value, str) else value) in _OFF:
            warnings.append(f"{key} {value!r} has no effect here")
        elif key in foreign_keys():
            instead = _INSTEAD.get(key, "leave it out")
            wrong.append(f"{key}: an option of SimpleTuner's that is not had here; {instead}")
        else:
            wrong.append(_unknown(key, known))
    return kept, tuple(warnings), wrong


@lru_cache(maxsize=1)
def foreign_keys() -> frozenset[str]:
    """Options of SimpleTuner that are not had here."""
    return frozenset(_FOREIGN_KEYS.read_text(encoding="utf-8").split()) - known_keys(TrainConfig)


def known_keys(model: type[BaseModel]) -> frozenset[str]:
    """Every name by which a field goes."""
    names = set(model.model_fields)
    for field in model.model_fields.values():
        choices = getattr(field.validation_alias, "choices", ())
        names.update(choice for choice in choices if isinstance(choice, str))
    return frozenset(names)


def _unknown(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"{key}: unknown option" + (f"; did you mean {near[0]!r}?" if near else "; see the configuration reference")


def problems_of(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Everything that is wrong: where (``learning_rate``, ``data_backend_config.0.id``), and a sentence with the value."""
    for part in error.errors():
        # Of a field with several types, pydantic says of each why it does not fit, and adds the type's name.
        where = ".".join(str(step) for step in part["loc"] if "[" not in str(step) and step not in _TYPES)
        if part["type"] == "extra_forbidden":
            known = known_keys(DatasetConfig)
            yield where, f"{where.rpartition('.')[0]}.{_unknown(str(part['loc'][-1]), known)}".lstrip(".")
            continue
        message = part["msg"].removeprefix("Value error, ")
        if part["type"] == "value_error" and isinstance(part["input"], dict):
            # Fields that do not go together; the message begins with the one to change.
            yield where or message.partition(":")[0], f"{where}: {message}" if where else message
        else:
            yield where, f"{where} {part['input']!r}: {message}"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
