"""Datasets of SimpleTuner: options ignored with a reason, translated, or refused with a remedy. No torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from longcat.problem import Problem
from longcat.validation import names_of, unknown_field
from trainer.config.dataset_options import DatasetConfig
from trainer.config.simpletuner.ignored import CACHES, DELETION, SAME, SPEED, SWITCHED_OFF, grouped, is_off

_CACHE_ENTRIES = ("text_embeds", "image_embeds", "conditioning_image_embeds", "distillation_cache")
"""``dataset_type`` of entries without pictures: they name caches."""
_IGNORED: Mapping[str, Problem] = {
    name: reason
    for reason, names in (
        (CACHES, """
         cache_dir cache_dir_conditioning_image_embeds cache_dir_vae cache_file_suffix clear_cache_each_epoch
         conditioning_image_embeds csv_cache_dir default disable_vae_cache hash_filenames image_embeds
         metadata_update_interval preserve_data_backend_cache skip_file_discovery text_cache_disable text_cache_ondemand
         text_embeds vae_cache_clear_each_epoch vae_cache_disable vae_cache_ondemand vae_cache_scan_behaviour"""),
        (SPEED, """
         aws_max_pool_connections conditioning_image_embed_batch_size image_processing_batch_size max_workers
         read_batch_size text_encoder_batch_size vae_batch_size write_batch_size"""),
        (SAME, "ignore_epochs"),
        (DELETION, "delete_nsfw_images delete_problematic_images delete_unwanted_images scan_for_errors"),
    )
    for name in names.split()
}  # fmt: skip
_SAME: Mapping[str, tuple[Any, ...]] = {"metadata_backend": ("discovery",), "start_epoch": (1,), "start_step": (1,)}
"""Values of options that are always so here."""
_UNSUPPORTED = Problem(
    code="simpletuner_dataset_option", template="an option of SimpleTuner's datasets that is not supported",
    remedy_template="leave it out",
)  # fmt: skip
_NO_CONTROL = Problem(
    code="conditioning_unsupported",
    template="second pictures are masks, or references that a model that edits is shown; control signals are neither",
    remedy_template="leave it out, and its dataset",
)  # fmt: skip
_NO_MADE_PAIRS = Problem(
    code="made_pairs_unsupported", template="second pictures are not made from the pictures",
    remedy_template="save them to a directory under the same names, and give its dataset as conditioning_data",
)  # fmt: skip
_SCHEDULE = Problem(
    code="dataset_schedule_unsupported", template="every dataset is used from the first step to the last",
    remedy_template="train in two runs: the second starts from the first with init_lora",
)  # fmt: skip
_INSTEAD: Mapping[str, Problem] = {
    **{
        name: Problem(
            code="secret_in_config", template="secrets do not belong in a configuration file",
            remedy_template="set {variable} in the environment", details={"variable": name.upper()},
        )
        for name in ("aws_access_key_id", "aws_secret_access_key")
    },
    "aws_region_name": Problem(
        code="region_in_config", template="the region comes from the environment",
        remedy_template="set AWS_DEFAULT_REGION",
    ),
    "audio": Problem(code="audio_unsupported", template="the model has no sound", remedy_template="leave it out"),
    "caption_filter_list": Problem(
        code="caption_filter_unsupported", template="captions are not edited", remedy_template="edit the caption files"
    ),
    "conditioning": _NO_MADE_PAIRS,
    "csv_caption_column": Problem(
        code="dataset_option_renamed", template="an option of SimpleTuner that has another name here",
        remedy_template="use {name}", details={"name": "caption_column"},
    ),
    "csv_file": Problem(
        code="dataset_option_renamed", template="an option of SimpleTuner that has another name here",
        remedy_template="use {name}", details={"name": "caption_file"},
    ),
    "end_epoch": _SCHEDULE,
    "end_step": _SCHEDULE,
    "start_epoch": _SCHEDULE,
    "start_step": _SCHEDULE,
    "grounding": Problem(
        code="grounding_unsupported", template="the model takes no boxes", remedy_template="leave it out"
    ),
    "huggingface": Problem(
        code="hub_dataset_unsupported", template="datasets of a hub are not downloaded",
        remedy_template="download it, and give its directory as instance_data_dir",
    ),
    "metadata_backend": Problem(
        code="metadata_backend_unsupported", template="sizes are read from the pictures",
        remedy_template="leave it out",
    ),
    "max_grounding_entities": Problem(
        code="grounding_unsupported", template="the model takes no boxes", remedy_template="leave it out"
    ),
    "slider_strength": Problem(
        code="slider_unsupported", template="sliders are not trained", remedy_template="leave it out"
    ),
    "timestep_sampling_offset": Problem(
        code="timestep_offset_unsupported", template="all datasets share one distribution of noise levels",
        remedy_template="leave it out",
    ),
    "train_batch_size": Problem(
        code="dataset_batch_unsupported", template="all datasets share one batch size",
        remedy_template="give train_batch_size of the training",
    ),
    "video": Problem(code="video_unsupported", template="the model makes no videos", remedy_template="leave it out"),
}  # fmt: skip
"""Problems by option, where the remedy is more than to leave it out."""
_OTHER_TYPES: Mapping[str, Problem] = {
    "audio": _INSTEAD["audio"],
    "video": _INSTEAD["video"],
    "caption": Problem(
        code="caption_entry_unsupported", template="captions without pictures are not trained on",
        remedy_template="leave the dataset out",
    ),
}  # fmt: skip
_OTHER_SOURCES: Mapping[str, Problem] = {
    "csv": Problem(
        code="csv_dataset_unsupported", template="pictures are not downloaded from addresses in a table",
        remedy_template="download them, and give caption_strategy csv with their directory",
    ),
    "huggingface": _INSTEAD["huggingface"],
    "webshart": Problem(
        code="webshart_unsupported", template="shards are not read", remedy_template="unpack them to a directory"
    ),
}  # fmt: skip
_SPELLINGS = {"is_regularization_data": "is_regularisation_data", "disable": "disabled"}
_UNSUPPORTED_KEYS = {
    "caption_shuffle", "composite_image_config", "conditioning_config", "config", "csv_caption_column", "csv_file",
    "csv_url_column", "effect_prompt", "lora_path", "parquet", "s2v_datasets", "webshart", "webshart_optimize_captions",
}  # fmt: skip
_TABLE_OPTIONS = {
    "path", "filename_column", "caption_column", "width_column", "height_column", "identifier_includes_extension",
}  # fmt: skip


def split_datasets(entries: list[Any]) -> tuple[dict[int, Any], tuple[Problem, ...], list[Problem]]:
    """Return the datasets of pictures in our form, a warning for each reason to ignore options, and the others' problems.

    Datasets are by their index in ``entries``. An entry that is no JSON object stays as it is: validation reports it.
    """
    supported: dict[int, Any] = {}
    ignored: dict[str, Problem] = {}
    problems: list[Problem] = []
    second = {name for entry in entries if isinstance(entry, dict) for name in _linked(entry)}
    refused_ids = {str(entry.get("id")) for entry in entries if isinstance(entry, dict) and _refused_kind(entry)}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            supported[index] = entry
            continue
        options = {_SPELLINGS.get(str(key), str(key)): value for key, value in entry.items() if value is not None}
        if options.get("dataset_type") in _CACHE_ENTRIES or not is_off(options.pop("disabled", None)):
            continue
        field = f"data_backend_config.{index}"
        if (
            refused := _refused_kind(options)
        ) is not None:  # one problem for the entry, not one for each of its options
            name, problem = refused
            problems.append(problem.within(field=f"{field}.{name}", value=options[name]))
            continue
        supported[index] = {}
        if _linked(options) & refused_ids:  # the problem is that of the other entry
            del options["conditioning_data"]
        for key, value in _translated(_with_kind(options, second), field, problems).items():
            outcome = _judge(key, value)
            if outcome is None:
                supported[index][key] = value
            elif isinstance(outcome, _Ignored):
                ignored[key] = outcome.reason
            else:
                shown = None if outcome.code == "secret_in_config" else value
                problems.append(outcome.within(field=field if outcome.field else f"{field}.{key}", value=shown))
    return supported, grouped(ignored), problems


def _with_kind(options: Mapping[str, Any], second: Collection[Any]) -> dict[str, Any]:
    """Return an entry with its kind: second pictures, if it has a type of them or another entry links to it."""
    kind, name = options.get("conditioning_type"), options.get("id")
    if "dataset_type" in options or not (kind or (isinstance(name, str) and name in second)):
        return dict(options)
    return {**options, "dataset_type": "conditioning", "conditioning_type": kind or "reference_strict"}


def _linked(options: Mapping[str, Any]) -> set[Any]:
    given = options.get("conditioning_data")
    return {name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str)}


@dataclass(frozen=True)
class _Ignored:
    reason: Problem


def _judge(key: str, value: object) -> _Ignored | Problem | None:
    """Return the reason to ignore an option, or its problem; None for an option of ours."""
    if key in names_of(DatasetConfig):
        return None
    if key in _IGNORED:
        return _Ignored(_IGNORED[key])
    if key not in _INSTEAD and key not in _UNSUPPORTED_KEYS:
        return unknown_field(key, value, names_of(DatasetConfig))
    if is_off(value):
        return _Ignored(SWITCHED_OFF)
    return _Ignored(SAME) if value in _SAME.get(key, ()) else _INSTEAD.get(key, _UNSUPPORTED)


def _refused_kind(entry: Mapping[str, Any]) -> tuple[str, Problem] | None:
    if entry.get("conditioning_type") == "controlnet":
        return "conditioning_type", _NO_CONTROL
    for name, kinds in (("dataset_type", _OTHER_TYPES), ("type", _OTHER_SOURCES)):
        value = entry.get(name)
        if isinstance(value, str) and value in kinds:
            return name, kinds[value]
    return None


def _translated(options: Mapping[str, Any], field: str, problems: list[Problem]) -> dict[str, Any]:
    """Return options with shuffling, tables and grounding in our form; what has no such form becomes a problem."""
    translated = dict(options)
    for name, translate in (("caption_shuffle", _shuffling), ("parquet", _table)):
        if isinstance(given := translated.get(name), dict):
            del translated[name]
            outcome = translate(given)
            if isinstance(outcome, Problem):
                problems.append(outcome.within(field=f"{field}.{name}", value=given))
            else:
                translated |= outcome
    for name in ("metadata_backend", "caption_strategy"):  # its table is translated above
        if translated.get(name) == "parquet" and "parquet" in options:
            del translated[name]
    if isinstance(boxes := translated.get("grounding"), dict) and is_off(boxes.get("enabled")):
        del translated["grounding"]
    return translated


def _shuffling(given: Mapping[str, Any]) -> dict[str, Any] | Problem:
    """Translate ``caption_shuffle``: tags are shuffled anew each time, so that a count and a seed have no effect."""
    if is_off(given.get("enable")):
        return {}
    if given.get("split_on", "comma") != "comma":
        return Problem(
            code="shuffle_separator_unsupported", template="tags are separated by commas",
            remedy_template="separate them by commas, with split_on comma",
        )  # fmt: skip
    return {"shuffle_tags": True, "keep_tags": given.get("position_start", 0)}


def _table(given: Mapping[str, Any]) -> dict[str, Any] | Problem:
    """Translate ``parquet``, which SimpleTuner also uses for tables of JSON lines."""
    path = given.get("path")
    others = [name for name, value in given.items() if name not in _TABLE_OPTIONS and not is_off(value)]
    if not (isinstance(path, str) and path.endswith((".jsonl", ".json"))):
        return Problem(
            code="parquet_unsupported", template="Parquet files are not read",
            remedy_template="save the table as JSON lines (.jsonl) or CSV, and give caption_strategy jsonl or csv",
        )  # fmt: skip
    if others:
        return Problem(
            code="table_options_unsupported", template="{names}: not supported", remedy_template="leave them out",
            details={"names": ", ".join(others)},
        )  # fmt: skip
    columns = {name: given[name] for name in ("filename_column", "caption_column") if name in given}
    return {"caption_strategy": "jsonl", "caption_file": path, **columns}
