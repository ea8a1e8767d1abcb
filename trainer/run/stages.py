"""The stages of a training, set up from its prepared inputs: encoding, validation, model, evaluations, loop."""

import gc
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel

from longcat.model.loading import load_scheduler_config, load_vae
from trainer.config.settings import select
from trainer.distill.trajectories import Teacher, Trajectories
from trainer.distill.windows import Windows
from trainer.encode.cache import Cache
from trainer.encode.preparation import dark_masks, encode_masks, encode_pictures
from trainer.encode.references import PromptInput, encode_prompts, encode_references, inputs_of
from trainer.loop.checkpoint import Origin
from trainer.loop.continuation import recorded_options
from trainer.loop.distributed import ProcessGroup
from trainer.loop.evaluation.evaluations import Evaluations, EvaluationSettings
from trainer.loop.evaluation.held_out_loss import HeldOutLoss
from trainer.loop.interruption import Interruption
from trainer.loop.loop import Loop, LoopSettings, TrainableModel
from trainer.loop.optimizer import OptimizerSettings
from trainer.loop.step import Batches, BatchSettings, Objective
from trainer.model.base import load_base
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject
from trainer.model.lycoris import slot_rank
from trainer.model.offload import PlacementSettings, place
from trainer.record.progress import RunProgress
from trainer.run.preparation import Prepared
from trainer.validation.changed_prompts import NextPrompts
from trainer.validation.nearest import NearestPictures
from trainer.validation.prompts import (
    PromptSettings,
    inputs_of_prompts,
    language_warning,
    references_of_prompts,
)
from trainer.validation.stage import ValidationStage
from trainer.validation.validation import OnStep, Validation, ValidationSettings


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The parts of a run that every stage shares."""

    process_group: ProcessGroup
    interruption: Interruption
    progress: RunProgress

    def cached(self, kind: str, done: int, total: int, hits: int) -> None:
        """Record the progress of caching one kind of entry. Raises ``InterruptedTraining`` after a signal."""
        self.interruption.check()
        self.progress.cache(kind, done, total, hits)


def encode(prepared: Prepared, context: RunContext) -> Cache:
    """Cache the embeddings of all prompts and captions and the latents of all pictures, a share in each process."""
    config, inventory, encoders = prepared.config, prepared.inventory, prepared.encoders
    process_group, progress = context.process_group, context.progress
    for warning in (*inventory.warnings, language_warning(prepared.prompts)):
        if warning is not None:
            progress.warn(warning)
    progress.dataset(
        pictures=len(inventory.samples),
        dropped=len(inventory.dropped),
        steps_per_epoch=prepared.sampler.batches_per_epoch / config.gradient_accumulation_steps,
    )
    progress.phase("caching")

    on_done = context.cached
    cache = Cache(config.cache_folder)
    # Validation prompts come first: one that is too long is then reported at once, not after hours.
    probes = prepared.probes
    are_dropped = config.caption_dropout_probability > 0 or config.distillation is not None
    shown = [PromptInput(probe.caption, probe.sample.reference) for probe in probes]
    texts = [*inputs_of_prompts(prepared.prompts), *inputs_of(inventory.samples, are_dropped=are_dropped), *shown]
    share, shares = process_group.rank, process_group.size
    encode_prompts(encoders, cache, texts, on_done, share=share, shares=shares)
    if config.distillation is None:
        pictures = (*inventory.samples, *{encoders.latent_key(probe.sample): probe.sample for probe in probes}.values())
        encode_pictures(encoders, cache, pictures, on_done, share=share, shares=shares)
        encode_masks(encoders, cache, pictures, on_done, share=share, shares=shares)
        edited = [sample.reference for sample in pictures if sample.reference is not None]
        edited += references_of_prompts(prepared.prompts)
        encode_references(encoders, cache, edited, on_done, share=share, shares=shares)
    gc.collect()  # frees the encoders' memory before the transformer is loaded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if process_group.is_rank_0:
        cache.prune()
    process_group.barrier()
    if process_group.is_rank_0 and (warning := dark_masks(encoders, cache, inventory.samples)) is not None:
        progress.warn(warning)
    return cache


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The parts of a training, ready to run."""

    transformer: LongCatImageTransformer2DModel
    """The transformer with LoRA layers."""
    validation: ValidationStage
    evaluations: Evaluations
    loop: Loop


def set_up(prepared: Prepared, cache: Cache, context: RunContext) -> TrainingRun:
    """Load the base and set up everything that the loop needs, from the configured checkpoint on."""
    context.progress.phase("preparing")
    transformer = load_base(prepared.config, prepared.encoders)
    validation = make_validation(prepared, cache, transformer, context)  # before LoRA layers change the modules' names
    model = make_trainable(prepared, transformer, context.process_group)
    evaluations = make_evaluations(prepared, cache, model, context)
    objective = make_objective(prepared, cache, model, context)
    loop = make_loop(prepared, model, objective, evaluations, context)
    return TrainingRun(transformer=transformer, validation=validation, evaluations=evaluations, loop=loop)


def make_validation(
    prepared: Prepared, cache: Cache, transformer: LongCatImageTransformer2DModel, context: RunContext
) -> ValidationStage:
    """Set up validation with the base as it is, without LoRA layers."""
    config, encoders = prepared.config, prepared.encoders

    def make(on_step: OnStep) -> Validation:
        return Validation(
            select(config, ValidationSettings),
            transformer,
            encoders,
            cache,
            prepared.prompts,
            scheduler_config=load_scheduler_config(encoders.flavour),
            load_vae=lambda: load_vae(encoders.flavour, encoders.dtype).to(encoders.device),
            on_step=on_step,
            rank=slot_rank(transformer, lycoris) if (lycoris := config.lycoris_config) else config.lora_rank,
            training=None
            if config.distillation is not None or encoders.flavour.settings.edits
            else NearestPictures(prepared.inventory.samples, encoders, cache),
        )

    return ValidationStage(
        make if prepared.prompts else None,
        transformer,
        context.process_group,
        context.interruption,
        context.progress,
        output_dir=config.output_dir,
        prompts=NextPrompts(
            select(config, PromptSettings), config.output_dir, encoders, cache, prepared.inventory.shown_in_validation,
            prepared.prompts, warn=context.progress.warn,
        ),
    )  # fmt: skip


def make_trainable(
    prepared: Prepared, transformer: LongCatImageTransformer2DModel, process_group: ProcessGroup
) -> TrainableModel:
    """Inject LoRA layers, then move the transformer to its device or devices."""
    config = prepared.config
    parameters = inject(transformer, select(config, LoraSettings))
    place(transformer, select(config, PlacementSettings), process_group.device)
    if config.fsdp_enable:
        process_group.shard(transformer, parameters)
    if config.gradient_checkpointing:
        checkpoint_blocks(transformer, every=config.gradient_checkpointing_interval)
    return TrainableModel(transformer=transformer, parameters=parameters, dtype=prepared.encoders.dtype)


def make_evaluations(prepared: Prepared, cache: Cache, model: TrainableModel, context: RunContext) -> Evaluations:
    """Set up the evaluations on held-out pictures; without such pictures there are none."""
    encoders, held_out = prepared.encoders, None
    if prepared.probes:
        held_out = HeldOutLoss(
            prepared.probes,
            encoders,
            cache,
            model.transformer,
            context.process_group,
            scheduler_config=load_scheduler_config(encoders.flavour),
        )
    return Evaluations(
        select(prepared.config, EvaluationSettings),
        held_out,
        context.progress,
        steps=prepared.steps,
        processes=context.process_group.size,
    )


def make_objective(prepared: Prepared, cache: Cache, model: TrainableModel, context: RunContext) -> Objective[Any]:
    """Return the batches that the run learns from: of pictures, or of the teacher's trajectories, which are solved first."""
    config, samples, encoders = prepared.config, prepared.inventory.samples, prepared.encoders
    scheduler_config, group = load_scheduler_config(encoders.flavour), context.process_group
    if config.distillation is None:
        return Batches(select(config, BatchSettings), samples, encoders, cache, scheduler_config)
    context.progress.phase("caching")
    teacher = Teacher.of(config.distillation, encoders, precision=config.base_model_precision)
    trajectories = Trajectories(teacher, samples, encoders, cache, scheduler_config)
    trajectories.solve(model.transformer, context.cached, share=group.rank, shares=group.size)
    group.barrier()
    return Windows(
        trajectories, samples, on_policy=config.distillation.on_policy, seed=config.seed, dtype=encoders.dtype
    )


def make_loop(
    prepared: Prepared,
    model: TrainableModel,
    objective: Objective[Any],
    evaluations: Evaluations,
    context: RunContext,
) -> Loop:
    """Make the loop, resumed from the configured checkpoint."""
    config, inventory, encoders = prepared.config, prepared.inventory, prepared.encoders
    loop = Loop(
        select(config, LoopSettings),
        select(config, OptimizerSettings),
        model,
        objective,
        prepared.sampler,
        context.process_group,
        evaluations,
        steps=prepared.steps,
        origin=Origin(
            options=recorded_options(config, processes=context.process_group.size),
            base_hash=encoders.flavour.hash,
            dataset_hash=inventory.hash,
        ),
    )
    for change in prepared.changes:
        context.progress.warn(change)
    loop.resume(context.progress)
    context.progress.resumed(loop.step)
    return loop
