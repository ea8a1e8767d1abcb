"""The options of a training that depend on each other. No torch."""

import os
from collections.abc import Iterator

from longcat.model.published.models import HUB_IDS
from longcat.model.shape import GRID_PX, TOKEN_PX
from longcat.problem import Problem
from trainer.config.fields import TrainFields
from trainer.config.links import link_problems


def consistency_problems(config: TrainFields) -> Iterator[Problem]:
    """Yield the problems of options that contradict or lack others."""
    yield from _distillation_problems(config)
    yield from _dataset_problems(config)
    yield from link_problems(config.data_backend_config)
    yield from _regularisation_problems(config)
    yield from _folder_problems(config)
    if config.publish_to and not config.adapter_name:
        yield Problem(
            code="adapter_name_missing", template="missing, and publish_to needs it",
            remedy_template="name the adapter", field="adapter_name",
        )  # fmt: skip
    yield from _lycoris_problems(config)
    yield from _alignment_problems(config)
    if config.fsdp_enable and (config.base_model_precision != "no_change" or config.enable_group_offload):
        yield Problem(
            code="fsdp_needs_unquantized_base", template="a base that is quantized or offloaded cannot be split",
            remedy_template="set base_model_precision no_change and leave out enable_group_offload; or leave out "
            "fsdp_enable, so that every process keeps a quantized base",
            field="fsdp_enable", value=True,
        )  # fmt: skip


def _distillation_problems(config: TrainFields) -> Iterator[Problem]:
    """Yield the problems of options about pictures, of which a distillation has none."""
    if config.distillation is None:
        return
    for name in ("instance_data_dir", "data_backend_config", "eval_share", "publish_max_copies"):
        if (given := getattr(config, name)) not in (None, (), 0):
            yield Problem(
                code="pictures_beside_distillation", template="about pictures, and distillation learns from prompts alone",
                remedy_template="leave it out, or leave out distillation", field=name, value=_short(given),
            )  # fmt: skip
    if config.fsdp_enable:
        yield Problem(
            code="distillation_with_fsdp", template="a distillation needs the whole base in every process",
            remedy_template="leave it out; with base_model_precision int8-torchao the base fits most devices",
            field="fsdp_enable", value=True,
        )  # fmt: skip


def _short(given: object) -> object:
    """Return a value to show; datasets by their number."""
    return f"{len(given)} datasets" if isinstance(given, tuple) else given


def _dataset_problems(config: TrainFields) -> Iterator[Problem]:
    """Yield the problems of datasets that are given twice."""
    names = [dataset.id for dataset in config.data_backend_config]
    if len(set(names)) < len(names):
        yield Problem(
            code="dataset_ids_repeated", template="the ids {ids} are not unique",
            remedy_template="give each dataset its own id",
            field="data_backend_config", details={"ids": ", ".join(names)},
        )  # fmt: skip
    if config.instance_data_dir and config.data_backend_config:
        yield Problem(
            code="datasets_given_twice", template="data_backend_config gives datasets too",
            remedy_template="leave out one of the two",
            field="instance_data_dir", value=config.instance_data_dir,
        )  # fmt: skip
    if config.trigger_words and config.data_backend_config:
        yield Problem(
            code="trigger_words_beside_datasets", template="data_backend_config gives the datasets",
            remedy_template="give trigger_words to each of its datasets instead",
            field="trigger_words", value=", ".join(config.trigger_words),
        )  # fmt: skip


def _regularisation_problems(config: TrainFields) -> Iterator[Problem]:
    trained = [dataset for dataset in config.data_backend_config if dataset.dataset_type == "image"]
    if trained and all(dataset.is_regularisation_data for dataset in trained):
        yield Problem(
            code="only_regularisation_data", template="no dataset without is_regularisation_data",
            remedy_template="add the pictures that the adapter is to learn",
            field="data_backend_config", details={},
        )  # fmt: skip


def _folder_problems(config: TrainFields) -> Iterator[Problem]:
    """Yield a problem for each directory of pictures that the training would write into."""
    written = {os.path.realpath(folder) for folder in (config.output_dir, config.cache_folder)}
    read = [config.instance_data_dir, *(dataset.instance_data_dir for dataset in config.data_backend_config)]
    for folder in read:
        if folder is not None and os.path.realpath(folder) in written:
            yield Problem(
                code="output_in_data", template="also the directory of the training pictures",
                remedy_template="give output_dir and cache_dir other directories; one below it is left out of the search",
                field="output_dir", value=folder,
            )  # fmt: skip


def _lycoris_problems(config: TrainFields) -> Iterator[Problem]:
    if config.lora_type == "lycoris" and config.lycoris_config is None:
        yield Problem(
            code="lycoris_config_missing", template="missing, and lora_type lycoris needs it",
            remedy_template='give an object or a JSON file, such as {{"algo": "lokr", "factor": 16}}',
            field="lycoris_config",
        )  # fmt: skip
    if config.lora_type == "standard" and config.lycoris_config is not None:
        yield Problem(
            code="lycoris_config_of_standard", template="given, and lora_type is standard",
            remedy_template="set lora_type lycoris, or leave it out", field="lycoris_config",
        )  # fmt: skip
    for name in ("use_dora", "use_rslora"):
        if config.lora_type == "lycoris" and getattr(config, name):
            yield Problem(
                code="lycoris_without", template="an option of lora_type standard; LoKr and LoHa do not have it",
                remedy_template="leave it out, or set lora_type standard", field=name, value=True,
            )  # fmt: skip


def _alignment_problems(config: TrainFields) -> Iterator[Problem]:
    alignment = config.aspect_bucket_alignment
    if alignment % TOKEN_PX:
        yield Problem(
            code="alignment_not_of_tokens", template="not a multiple of {token} px, the side of a token",
            remedy_template="give a multiple of {token}",
            field="aspect_bucket_alignment", value=alignment, details={"token": TOKEN_PX},
        )  # fmt: skip
    if config.model_flavour in HUB_IDS and alignment < GRID_PX:
        yield Problem(
            code="alignment_too_small",
            template="less than {least}, the alignment that flavour {flavour!r} was trained with",
            remedy_template="give a multiple of {least}",
            field="aspect_bucket_alignment", value=alignment, details={"least": GRID_PX, "flavour": config.model_flavour},
        )  # fmt: skip
