"""A training, from its configuration to a published adapter: prepare, encode, train, validate, publish."""

import gc
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import LongCatImageTransformer2DModel

from longcat.errors import ConfigError, DataError
from longcat.logs import log_event
from longcat.model.flavour import describe
from longcat.model.loading import load_scheduler_config, load_vae
from longcat.problem import Problem
from trainer.config.options import TrainConfig
from trainer.config.settings import public_options, select
from trainer.data.inventory import Inventory
from trainer.data.scan import take_inventory
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders, captions_of, dark_masks, encode_captions, encode_masks, encode_pictures
from trainer.loop.checkpoint import Origin, find_manifest
from trainer.loop.continuation import continue_with, nothing_left, recorded_options, stopped_before
from trainer.loop.distributed import ProcessGroup
from trainer.loop.interruption import InterruptedTraining, Interruption
from trainer.loop.loop import Loop, LoopSettings, TrainableModel
from trainer.loop.optimizer import OptimizerSettings
from trainer.loop.sampler import Sampler
from trainer.loop.step import Batches, BatchSettings
from trainer.model.base import check_machine, load_base, prepare_model
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject
from trainer.model.lycoris import slot_rank
from trainer.model.offload import PlacementSettings, place
from trainer.outcome import Outcome, outcome_of, problems_of
from trainer.publish import PublishSettings, TrainedAdapter, keep, publish_adapter
from trainer.record.progress import RunProgress
from trainer.record.run_file import RUN_FILE, make_output_dir, read_run
from trainer.record.trackers import check_trackers
from trainer.validation.evaluations import Evaluations, EvaluationSettings
from trainer.validation.gate import GateSettings, gate, gated
from trainer.validation.held_out_loss import HeldOutLoss
from trainer.validation.nearest import NearestPictures
from trainer.validation.probes import Probe, probes_of
from trainer.validation.prompts import (
    PromptSettings,
    ValidationPrompt,
    language_warning,
    texts_of,
    validation_prompts,
)
from trainer.validation.stage import ValidationStage
from trainer.validation.validation import OnStep, Validation, ValidationSettings

DEFAULT_STEPS = 1000

_log = logging.getLogger("lithograph.trainer")


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


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The parts of a run that every stage shares."""

    process_group: ProcessGroup
    interruption: Interruption
    progress: RunProgress


def train(config: TrainConfig, *, show_bar: bool) -> Outcome:
    """Train, validate and publish. Errors are raised after they are in the run's record."""
    with Interruption() as interruption:
        with _recorded(config):
            process_group = ProcessGroup(config.device)
        try:
            with _recorded(config, writes=process_group.is_rank_0):
                prepared = prepare(config, process_group)
            if nothing := _nothing_left(prepared):
                log_event(_log, "nothing_to_do", logging.WARNING, reason=str(nothing))
                return Outcome.FINISHED
            with _progress(
                prepared.config, prepared.steps, show_bar=show_bar, writes=process_group.is_rank_0
            ) as progress:
                context = RunContext(process_group=process_group, interruption=interruption, progress=progress)
                return _finish(prepared, context)
        finally:
            process_group.close()


def _finish(prepared: Prepared, context: RunContext) -> Outcome:
    """Run the stages and record how they ended."""
    try:
        is_complete = run_stages(prepared, context)
    except InterruptedTraining:
        is_complete = False
    except BaseException as error:  # whatever ends the run belongs in its record; it is raised again
        context.progress.finish("failed", problems_of(error), int(outcome_of(error)))
        raise
    outcome = Outcome.FINISHED if is_complete else Outcome.PREEMPTED
    context.progress.finish("finished" if is_complete else "preempted", (), int(outcome))
    return outcome


def run_stages(prepared: Prepared, context: RunContext) -> bool:
    """Encode, train, validate, publish. Return False if the run was interrupted, with a checkpoint saved.

    Raises ``PublicationGatedError`` for an adapter that does not meet the configured thresholds.
    """
    cache = encode(prepared, context)
    context.progress.phase("preparing")
    transformer = load_base(prepared.config, prepared.encoders)
    validation = make_validation(prepared, cache, transformer, context)  # before LoRA layers change the modules' names
    model = make_trainable(prepared, transformer, context.process_group)
    evaluations = make_evaluations(prepared, cache, model, context)
    loop = make_loop(prepared, cache, model, evaluations, context)
    if not loop.run(context.progress, context.interruption, validate=validation.run):
        return False
    step, weights = evaluations.chosen(loop.step, loop.result())
    result = validation.run(step, weights)
    if context.process_group.any(context.interruption.requested):
        return False  # starting again from the last checkpoint validates and publishes
    evaluations.sweep(transformer, weights)
    failed = gate(select(prepared.config, GateSettings), evaluations.card, result.nearest if result else ())
    adapter = TrainedAdapter(
        weights=weights,
        flavour=prepared.encoders.flavour,
        precision=prepared.config.base_model_precision,
        options=public_options(prepared.config),
        steps=step,
        losses=loop.losses,
        dataset_hash=prepared.inventory.hash,
        trigger_words=prepared.inventory.trigger_words,
        pictures=result.files if result else (),
        may_be_latest=result is None or result.passed,
    )
    destination = select(prepared.config, PublishSettings)
    if context.process_group.any(bool(failed)):
        if context.process_group.is_rank_0:
            keep(destination, adapter)
        raise gated(failed)
    if context.process_group.is_rank_0:
        publish_adapter(destination, adapter, context.progress)
    context.process_group.barrier()
    return True


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
    inventory = take_inventory(
        config, partial(describe, config.flavour, revision=config.revision), processes=process_group.size
    )
    config, encoders = prepare_model(config, process_group.device)
    select(config, PublishSettings).check_name(encoders.flavour)
    sampler = Sampler(inventory.samples, batch=config.train_batch_size * process_group.size, seed=config.seed)
    return Prepared(
        config=config,
        encoders=encoders,
        inventory=inventory,
        prompts=validation_prompts(select(config, PromptSettings), encoders, inventory.samples),
        probes=probes_of(inventory.held_out, most=config.num_eval_images),
        sampler=sampler,
        steps=total_steps(config, sampler),
        changes=tuple(changes),
        resumed_step=checkpoint.step if checkpoint else 0,
    )


def _nothing_left(prepared: Prepared) -> Problem | None:
    """Return the note of a run that has made all its steps before and published; None for one that has work to do.

    A run that was killed after its last step still validates and publishes.
    """
    config, step, steps = prepared.config, prepared.resumed_step, prepared.steps
    stopped_early = 0 < step < steps and _has_stopped_early(config, step)
    if step == 0 or (step < steps and not stopped_early) or (step <= steps and not _is_published(config)):
        return None
    return stopped_before(step=step) if stopped_early else nothing_left(step=step, steps=steps)


def _has_stopped_early(config: TrainConfig, step: int) -> bool:
    """Return whether the run's evaluations up to a checkpoint end it, with the patience that is configured now."""
    with suppress(DataError):  # no record, or a damaged one
        card = read_run(config.output_dir).report
        return (
            card is not None
            and card.at(step) is not None
            and card.until(step, config.early_stopping_patience).is_stopped
        )
    return False


def _is_published(config: TrainConfig) -> bool:
    """Return whether an earlier attempt finished, and published where this one would."""
    with suppress(DataError):  # no record, or a damaged one
        return read_run(config.output_dir).state == "finished" and select(config, PublishSettings).is_done()
    return False


def total_steps(config: TrainConfig, sampler: Sampler) -> int:
    """Return the optimizer steps of the whole run."""
    if config.max_train_steps:
        return config.max_train_steps
    if config.num_train_epochs:
        return max(1, config.num_train_epochs * sampler.batches_per_epoch // config.gradient_accumulation_steps)
    return DEFAULT_STEPS


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

    def on_done(kind: str, done: int, total: int, hits: int) -> None:
        context.interruption.check()
        progress.cache(kind, done, total, hits)

    cache = Cache(config.cache_folder)
    # Validation prompts come first: one that is too long is then reported at once, not after hours.
    probes = prepared.probes
    captions = (*captions_of(inventory.samples), *(probe.caption for probe in probes))
    texts = list(dict.fromkeys([*texts_of(prepared.prompts), *captions]))
    share, shares = process_group.rank, process_group.size
    encode_captions(encoders, cache, texts, on_done, share=share, shares=shares)
    pictures = (*inventory.samples, *{encoders.latent_key(probe.sample): probe.sample for probe in probes}.values())
    encode_pictures(encoders, cache, pictures, on_done, share=share, shares=shares)
    encode_masks(encoders, cache, pictures, on_done, share=share, shares=shares)
    gc.collect()  # frees the encoders' memory before the transformer is loaded
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if process_group.is_rank_0:
        cache.prune()
    process_group.barrier()
    if process_group.is_rank_0 and (warning := dark_masks(encoders, cache, inventory.samples)) is not None:
        progress.warn(warning)
    return cache


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
            training=NearestPictures(prepared.inventory.samples, encoders, cache),
        )

    return ValidationStage(
        make if prepared.prompts else None,
        transformer,
        context.process_group,
        context.interruption,
        context.progress,
        output_dir=config.output_dir,
    )


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


def make_loop(
    prepared: Prepared, cache: Cache, model: TrainableModel, evaluations: Evaluations, context: RunContext
) -> Loop:
    """Make the loop, resumed from the configured checkpoint."""
    config, inventory, encoders = prepared.config, prepared.inventory, prepared.encoders
    batches = Batches(
        select(config, BatchSettings), inventory.samples, encoders, cache, load_scheduler_config(encoders.flavour)
    )
    loop = Loop(
        select(config, LoopSettings),
        select(config, OptimizerSettings),
        model,
        batches,
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


@contextmanager
def _recorded(config: TrainConfig, *, writes: bool = True) -> Iterator[None]:
    """Record an error that is raised before the run's own record is open."""
    try:
        yield
    except Exception as error:  # any error belongs in the record; it is raised again
        if writes:
            make_output_dir(config.output_dir)
        with _progress(config, 0, show_bar=False, writes=writes) as progress:
            progress.finish("failed", problems_of(error), int(outcome_of(error)))
        raise


def _progress(config: TrainConfig, steps: int, *, show_bar: bool, writes: bool) -> RunProgress:
    return RunProgress(
        config.output_dir,
        run_id=config.tracker_run_name or _run_id(config),
        config=public_options(config),
        total_steps=steps,
        report_to=config.report_to,
        project=config.tracker_project_name,
        metrics_port=config.metrics_port,
        pushgateway_url=config.pushgateway_url,
        show_bar=show_bar,
        writes=writes,
    )


def _run_id(config: TrainConfig) -> str:
    """Return the id of the run: a resumed run keeps its own, because a Pushgateway keeps a group for every id."""
    if config.resume_from_checkpoint is not None and (config.output_dir / RUN_FILE).exists():
        with suppress(DataError):  # a damaged record is replaced by a new one
            return read_run(config.output_dir).run_id
    return f"{config.adapter_name or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
