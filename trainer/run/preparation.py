"""The preparation of a training: its inputs, checked before anything large is loaded."""

from dataclasses import dataclass
from functools import partial

from longcat.errors import ConfigError
from longcat.model.flavour import describe
from longcat.problem import Problem
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.config.targets import check_fit
from trainer.data.inventory import Inventory
from trainer.data.scan import take_inventory
from trainer.distill.prompts import take_prompts
from trainer.encode.preparation import Encoders
from trainer.loop.checkpoint import find_manifest
from trainer.loop.continuation import continue_with
from trainer.loop.distributed import ProcessGroup
from trainer.loop.evaluation.probes import Probe, probes_of
from trainer.loop.sampler import Sampler
from trainer.model.base import check_editing, check_machine, prepare_model
from trainer.model.lora import check_init_lora
from trainer.record.boards.trackers import check_trackers
from trainer.record.run_file import make_output_dir
from trainer.run.publish import PublishSettings
from trainer.validation.changed_prompts import with_changes
from trainer.validation.prompts import (
    PromptSettings,
    ValidationPrompt,
    validation_prompts,
)

DEFAULT_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The inputs of a training, checked before anything large is loaded."""

    config: TrainConfig
    """The configuration, with every ``auto`` decided."""
    encoders: Encoders
    inventory: Inventory
    prompts: tuple[ValidationPrompt, ...]
    probes: tuple[Probe, ...]
    """Held-out pictures with captions and noise levels; empty if nothing is held out."""
    sampler: Sampler
    steps: int
    """Optimizer steps of the whole run."""
    changes: tuple[Problem, ...]
    """The options that differ from those of the checkpoint that is resumed."""
    resumed_step: int
    """The step of that checkpoint; 0 without one."""


def prepare(config: TrainConfig, process_group: ProcessGroup) -> Prepared:
    """Check machine, data and model, and decide every ``auto``. Raises ``UserError`` or ``StorageError``."""
    make_output_dir(config.output_dir)
    if config.fsdp_enable and process_group.size == 1:
        raise ConfigError(
            "fsdp_in_one_process",
            "splits the base over several processes, and this is one",
            remedy="start them with torchrun --nproc_per_node N -m lithograph train",
            field="fsdp_enable",
            value=True,
        )
    check_trackers(config.report_to)
    select(config, PublishSettings).check()
    check_machine(config, process_group.device)
    checkpoint, changes = None, list[Problem]()
    if config.resume_from_checkpoint is not None:
        checkpoint = find_manifest(config.output_dir / "checkpoints", config.resume_from_checkpoint)
    if checkpoint is not None:
        config, changes = continue_with(
            config, checkpoint.origin.options, processes=process_group.size, step=checkpoint.step
        )
    find_model = partial(describe, config.flavour, revision=config.revision)
    if config.distillation is None:
        inventory = take_inventory(config, find_model, processes=process_group.size)
    else:
        inventory = take_prompts(config, find_model)
    check_init_lora(config.init_lora)
    described = find_model()
    check_editing(config, described.settings)
    check_fit(config, described.folder)
    config, encoders = prepare_model(config, process_group.device)
    select(config, PublishSettings).check_name(encoders.flavour)
    sampler = Sampler(inventory.samples, batch=config.train_batch_size * process_group.size, seed=config.seed)
    return Prepared(
        config=config,
        encoders=encoders,
        inventory=inventory,
        prompts=validation_prompts(
            with_changes(select(config, PromptSettings), config.output_dir), encoders, inventory.shown_in_validation
        ),
        probes=probes_of(inventory.held_out, most=config.num_eval_images),
        sampler=sampler,
        steps=total_steps(config, sampler),
        changes=tuple(changes),
        resumed_step=checkpoint.step if checkpoint else 0,
    )


def total_steps(config: TrainConfig, sampler: Sampler) -> int:
    """Return the optimizer steps of the whole run."""
    if config.max_train_steps:
        return config.max_train_steps
    if config.num_train_epochs:
        return max(1, config.num_train_epochs * sampler.batches_per_epoch // config.gradient_accumulation_steps)
    return DEFAULT_STEPS
