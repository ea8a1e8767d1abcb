"""``config.json`` to ``TrainConfig``, with comments, flags, environment and SimpleTuner's names. No torch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from longcat.errors import ConfigError
from longcat.problem import Problem, reason_of
from longcat.validation import problems_of
from trainer.config.options import TrainConfig
from trainer.config.reading.json_text import parse_json
from trainer.config.simpletuner.datasets import split_datasets
from trainer.config.simpletuner.options import our_name, split_foreign


def load_config(path: Path | None, *overrides: Mapping[str, Any]) -> tuple[TrainConfig, tuple[Problem, ...]]:
    """Return the configuration in a file, changed by ``overrides``, and warnings about options without effect.

    A later source overrides the earlier ones, whichever of an option's names they use. Raises ``ConfigError`` with a problem
    for every option that is wrong.
    """
    merged = {} if path is None else _read_options(path)
    for source in overrides:
        replaced = {our_name(name) for name in source}
        merged = {name: value for name, value in merged.items() if our_name(name) not in replaced} | dict(source)
    options, warnings, problems = split_foreign(merged)
    base = Path() if path is None else path.parent
    if isinstance(named := options.get("data_backend_config"), str):
        options["data_backend_config"] = _read_datasets(named, base)
    if isinstance(named := options.get("lycoris_config"), str):
        options["lycoris_config"] = read_json(_nearest(named, base), option="lycoris_config")
    config, more_warnings, more_problems = make_config(options)
    if config is None or problems:
        raise ConfigError.of([*problems, *more_problems])
    return config, (*warnings, *more_warnings)


def make_config(options: Mapping[str, Any]) -> tuple[TrainConfig | None, tuple[Problem, ...], list[Problem]]:
    """Return the configuration of options under our names, warnings, and problems; without problems it is not None."""
    options = {name: value for name, value in options.items() if value is not None}
    warnings: tuple[Problem, ...] = ()
    problems: list[Problem] = []
    indices: list[int] = []
    if isinstance(entries := options.get("data_backend_config"), list | tuple):
        datasets, warnings, problems = split_datasets(list(entries))
        options["data_backend_config"], indices = list(datasets.values()), list(datasets)
    try:
        config = TrainConfig.model_validate(options)
    except ValidationError as error:
        return (
            None,
            warnings,
            [*problems, *(_renumbered(problem, indices) for problem in problems_of(error, TrainConfig))],
        )
    warnings = (*warnings, *_reference_warnings(config))
    if config.lycoris_config is not None:
        warnings = (*warnings, *_lycoris_warnings(config))
    return (None if problems else config), warnings, problems


def _reference_warnings(config: TrainConfig) -> Iterator[Problem]:
    """Yield a warning for references with captions: SimpleTuner trains with them instead of those of the pictures."""
    described = [of.id for of in config.datasets if of.has_references and "caption_strategy" in of.model_fields_set]
    if described:
        yield Problem(
            code="reference_captions_unused",
            template="no effect for the references {ids}: a pair's captions are those of its edited picture",
            remedy_template="put instructions beside the edited pictures", field="caption_strategy",
            details={"ids": ", ".join(described)},
        )  # fmt: skip


def _lycoris_warnings(config: TrainConfig) -> Iterator[Problem]:
    assert config.lycoris_config is not None
    if unknown := config.lycoris_config.unknown_classes:
        yield Problem(
            code="lycoris_class_unknown",
            template="target_module {classes} selects nothing: this model has no such module",
            remedy_template="its attention is LongCatImageAttention, and its feed-forward FeedForward",
            field="lycoris_config.apply_preset",
            details={"classes": ", ".join(unknown)},
        )
    names = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_init_type")
    if given := [name for name in names if name in config.model_fields_set]:
        yield Problem(
            code="lora_option_with_lycoris", template="no effect: lycoris_config decides it", field=", ".join(given)
        )


def _renumbered(problem: Problem, indices: Sequence[int]) -> Problem:
    """Return a dataset's problem with its index in the list as given, which also has entries of caches."""
    match problem.field.split(".", 2):
        case ["data_backend_config", index, *rest] if index.isdecimal():
            return replace(problem, field=".".join(["data_backend_config", str(indices[int(index)]), *rest]))
    return problem


def read_json(path: Path, *, option: str) -> Any:
    """Read a JSON file that may have ``//`` comments. Raises ``ConfigError`` naming the option that gives the file."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ConfigError(
            "config_file_unreadable",
            "cannot be read: {cause}",
            remedy="check the path",
            field=option,
            value=str(path),
            cause=reason_of(error),
        ) from error
    except ConfigError as error:
        raise error.within(field=option, value=str(path)) from error


def read_prompts(path: Path) -> list[str]:
    """Read a library of prompts: a JSON object of names and prompts. Raises ``ConfigError``."""
    parsed = read_json(path, option="user_prompt_library")
    entries = parsed if isinstance(parsed, dict) else {"": None}
    prompts = [prompt for entry in entries.values() if isinstance(prompt := _prompt_of(entry), str)]
    if len(prompts) < len(entries):
        raise ConfigError(
            "prompt_library_not_object",
            "not a JSON object of names and prompts",
            remedy='give one as {{"name": "prompt"}}, or {{"name": {{"prompt": "prompt"}}}}',
            field="user_prompt_library",
            value=str(path),
        )
    return prompts


def _prompt_of(entry: Any) -> Any:
    return entry["prompt"] if isinstance(entry, dict) and entry.keys() == {"prompt"} else entry


def _read_options(path: Path) -> dict[str, Any]:
    parsed = read_json(path, option="config")
    if not isinstance(parsed, dict):
        raise ConfigError(
            "config_not_object",
            "not a JSON object",
            remedy="give a JSON object of options",
            field="config",
            value=str(path),
        )
    options = {key.removeprefix("--"): value for key, value in parsed.items()}
    if twice := [key for key in parsed if f"--{key}" in parsed]:
        raise ConfigError(
            "option_given_twice",
            "given as {name} too, with the value {other}",
            remedy="leave out one of the two",
            field=twice[0],
            value=parsed[twice[0]],
            name=f"--{twice[0]}",
            other=parsed[f"--{twice[0]}"],
        )
    return options


def _read_datasets(given: str, base: Path) -> Any:
    path = _nearest(given, base)
    parsed = read_json(path, option="data_backend_config")
    if not isinstance(parsed, list):
        raise ConfigError(
            "datasets_not_list",
            "not a JSON list",
            remedy="give a JSON list of datasets",
            field="data_backend_config",
            value=str(path),
        )
    return parsed


def _nearest(given: str, base: Path) -> Path:
    """Return the path of a file that a configuration names: in the working directory, else beside the configuration."""
    expanded = Path(os.path.expanduser(given))
    return next(filter(_is_file, (expanded, base / expanded)), expanded)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
