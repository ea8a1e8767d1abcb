"""A training, from its configuration to a published adapter: prepare, encode, train, validate, publish."""

import logging
from dataclasses import dataclass

from longcat.adapter.manifest import Sampling
from longcat.logs import log_event
from longcat.problem import Problem
from trainer.config.options import TrainConfig
from trainer.config.settings import public_options, select
from trainer.loop.distributed import ProcessGroup
from trainer.loop.interruption import InterruptedTraining, Interruption
from trainer.record.outcome import Outcome, outcome_of, problems_of
from trainer.run.completion import nothing_to_do
from trainer.run.preparation import Prepared, prepare
from trainer.run.publish import PublishSettings, TrainedAdapter, keep, publish_adapter
from trainer.run.record import errors_recorded, open_progress
from trainer.run.stages import RunContext, TrainingRun, encode, set_up
from trainer.validation.gate import GateSettings, gate, gated

_log = logging.getLogger("lithograph.trainer")


def train(config: TrainConfig, *, show_bar: bool) -> Outcome:
    """Train, validate and publish. Errors are raised after they are in the run's record."""
    with Interruption() as interruption:
        with errors_recorded(config):
            process_group = ProcessGroup(config.device)
        try:
            with errors_recorded(config, writes=process_group.is_rank_0):
                prepared = prepare(config, process_group)
            if nothing := nothing_to_do(prepared):
                log_event(_log, "nothing_to_do", logging.WARNING, reason=str(nothing))
                return Outcome.FINISHED
            with open_progress(
                prepared.config, prepared.steps, show_bar=show_bar, writes=process_group.is_rank_0
            ) as progress:
                context = RunContext(process_group=process_group, interruption=interruption, progress=progress)
                return _finish(prepared, context)
        finally:
            process_group.close()


def _finish(prepared: Prepared, context: RunContext) -> Outcome:
    """Run the stages and record their outcome."""
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
    training = set_up(prepared, cache, context)
    if not training.loop.run(context.progress, context.interruption, validate=training.validation.run):
        return False
    validated = validate(prepared, training, context)
    if validated is None:
        return False
    publish(prepared, validated, context)
    return True


@dataclass(frozen=True, kw_only=True)
class ValidatedAdapter:
    """The result of a training, and the thresholds of publication that it fails."""

    adapter: TrainedAdapter
    failed: tuple[Problem, ...]


def validate(prepared: Prepared, training: TrainingRun, context: RunContext) -> ValidatedAdapter | None:
    """Generate the validation pictures of the chosen step's adapter and check it against the thresholds.

    Return None if the run was interrupted: starting again from the last checkpoint validates and publishes.
    """
    config, loop, evaluations = prepared.config, training.loop, training.evaluations
    step, weights = evaluations.chosen(loop.step, loop.result())
    result = training.validation.run(step, weights)
    if context.process_group.any(context.interruption.requested):
        return None
    evaluations.sweep(training.transformer, weights)
    adapter = TrainedAdapter(
        weights=weights,
        flavour=prepared.encoders.flavour,
        precision=config.base_model_precision,
        options=public_options(config),
        steps=step,
        losses=loop.losses,
        dataset_hash=prepared.inventory.hash,
        trigger_words=prepared.inventory.trigger_words,
        pictures=result.files if result else (),
        may_be_latest=result is None or result.passed,
        sampling=_sampling(config),
    )
    failed = gate(select(config, GateSettings), evaluations.card, result.nearest if result else ())
    return ValidatedAdapter(adapter=adapter, failed=failed)


def _sampling(config: TrainConfig) -> Sampling | None:
    """Return the sampling that the adapter was made for, if it is a distilled one."""
    return None if config.distillation is None else Sampling(steps=config.distillation.steps, guidance_scale=1)


def publish(prepared: Prepared, validated: ValidatedAdapter, context: RunContext) -> None:
    """Keep the adapter and publish it, from rank 0.

    Raises ``PublicationGatedError`` in every process if it fails a threshold; it is kept then too.
    """
    destination, process_group = select(prepared.config, PublishSettings), context.process_group
    if process_group.any(bool(validated.failed)):
        if process_group.is_rank_0:
            keep(destination, validated.adapter)
        raise gated(validated.failed)
    if process_group.is_rank_0:
        publish_adapter(destination, validated.adapter, context.progress)
    process_group.barrier()
