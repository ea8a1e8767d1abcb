"""A training from its configuration to a published adapter: each stage is a call, and data goes one way."""

import gc
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from longcat.errors import ConfigError, DataError, LithographError, StorageError
from longcat.flavour import describe, resolve
from longcat.loading import load_scheduler_config, load_transformer, load_vae
from longcat.logs import tell
from longcat.lora import LoraWeights
from longcat.precision import Offload, Precision
from longcat.quantize import check_precision, quantize_base
from longcat.storage import open_storage
from trainer.cache import Cache
from trainer.config import TrainConfig
from trainer.interruption import InterruptedTraining, Interruption
from trainer.inventory import Inventory
from trainer.loop import Loop, Trainee
from trainer.lora import inject
from trainer.offload import place
from trainer.outcome import Outcome, outcome_of
from trainer.planning import compute_dtype, decide
from trainer.preparation import Encoders, captions_of, encode_captions, encode_pictures
from trainer.progress import Progress
from trainer.publish import Trained, keep, public_config, publish_adapter
from trainer.recompute import checkpoint_blocks
from trainer.run_record import RUN_FILE, read_run
from trainer.sampler import Sampler
from trainer.scanning import take_inventory
from trainer.step import Batches
from trainer.validation import Scene, Validation, Verdict, language_warning, prompts_of, scenes
from trainer.world import World

DEFAULT_STEPS = 1000

_log = logging.getLogger("lithograph.trainer")


def train(config: TrainConfig, *, show_bar: bool) -> Outcome:
    """Train, validate and publish; how it ended. Raises what went wrong, after it is in the run's record."""
    with Interruption() as interruption:
        with _recorded(config):
            world = World(config.device)
        try:
            return _train(config, world, interruption, show_bar=show_bar)
        finally:
            world.close()


def _train(config: TrainConfig, world: World, interruption: Interruption, *, show_bar: bool) -> Outcome:
    make_output(config.output_dir)
    with _recorded(config, writes=world.is_first):
        if config.fsdp_enable and world.size == 1:
            raise ConfigError(
                "fsdp_enable: it splits the base over several processes, and this is one: start them with torchrun "
                "--nproc_per_node N -m lithograph train"
            )
        check_machine(config, world.device)
        # The data before the model: gigabytes need not be downloaded to learn that a caption is missing.
        inventory = take_inventory(config, describe(config.flavour, revision=config.revision), processes=world.size)
        config, encoders = prepare_model(config, world.device)
    sampler = Sampler(inventory.samples, batch=config.train_batch_size * world.size, seed=config.seed)
    steps = total_steps(config, sampler)
    with _progress(config, steps, show_bar=show_bar, writes=world.is_first) as progress:
        try:
            finished = _stages(config, encoders, inventory, sampler, steps, world, interruption, progress)
        except InterruptedTraining:
            finished = False
        except BaseException as error:
            progress.finish("failed", f"{type(error).__name__}: {error}", int(outcome_of(error)))
            raise
        outcome = Outcome.FINISHED if finished else Outcome.PREEMPTED
        progress.finish("finished" if finished else "preempted", None, int(outcome))
    return outcome


def _stages(
    config: TrainConfig,
    encoders: Encoders,
    inventory: Inventory,
    sampler: Sampler,
    steps: int,
    world: World,
    interruption: Interruption,
    progress: Progress,
) -> bool:
    """Cache, train, validate, publish; whether it came to the end."""
    cache = Cache(config.cache_folder)
    drawn = scenes(config, encoders, inventory.samples)
    for warning in (*inventory.warnings, language_warning([s.prompt for s in drawn if not s.is_base])):
        if warning and world.is_first:
            tell(_log, "warning", logging.WARNING, note=warning)
    progress.dataset(
        pictures=len(inventory.samples),
        dropped=len(inventory.dropped),
        steps_per_epoch=sampler.batches_per_epoch / config.gradient_accumulation_steps,
    )
    progress.phase("caching")
    _fill_cache(encoders, cache, inventory, drawn, world, interruption, progress)

    progress.phase("preparing")
    scheduler_config = load_scheduler_config(encoders.flavour)
    transformer = load_transformer(encoders.flavour, encoders.dtype)
    quantize_base(transformer, config.precision, device=world.device, training=True, offload=_offload(config))

    def on_step(done: int, total: int, what: str) -> None:
        interruption.check()
        progress.drawing(done, total, what)

    validation = Validation(
        config,
        transformer,
        encoders,
        cache,
        drawn if world.is_first else (),
        scheduler_config=scheduler_config,
        load_vae=lambda: load_vae(encoders.flavour, encoders.dtype).to(world.device),
        on_step=on_step,
        rank=config.lora_rank,
    )
    parameters = inject(transformer, config)
    place(transformer, config, world.device)
    if config.fsdp_enable:
        world.split(transformer, parameters)
    if config.gradient_checkpointing:
        checkpoint_blocks(transformer, every=config.gradient_checkpointing_interval)
    batches = Batches(config, inventory.samples, encoders, cache, scheduler_config)
    trainee = Trainee(transformer=transformer, parameters=parameters, dtype=encoders.dtype)
    loop = Loop(config, trainee, batches, sampler, world, steps=steps, dataset_hash=inventory.hash)
    loop.resume()
    progress.resumed(loop.step)

    def validate(step: int, weights: LoraWeights) -> Verdict | None:
        if not drawn:
            return None
        verdict = None
        with world.gathered(transformer):
            if world.is_first:
                progress.phase("validating")
                with suppress(InterruptedTraining):  # the loop saves and stops, with the other processes
                    verdict = validation.run(weights, step=step)
                    names = [str(path.relative_to(config.output_dir)) for path in verdict.files]
                    progress.validation(step, names, verdict.passed, list(verdict.reasons))
            world.wait()
        return verdict

    if not loop.run(progress, interruption, validate=validate):
        return False
    weights = loop.result()
    verdict = validate(loop.step, weights)
    if world.any(interruption.requested):
        return False  # the last checkpoint is there; starting again validates and publishes
    if world.is_first:
        trained = Trained(
            weights=weights,
            flavour=encoders.flavour,
            steps=loop.step,
            losses=loop.losses,
            dataset_hash=inventory.hash,
            trigger_words=inventory.trigger_words,
            pictures=verdict.files if verdict else (),
            may_be_latest=verdict is None or verdict.passed,
        )
        _publish(config, trained, progress)
    world.wait()
    return True


def _publish(config: TrainConfig, trained: Trained, progress: Progress) -> None:
    progress.phase("publishing")
    path = keep(config, trained)
    if config.publish_to is None:
        tell(_log, "kept", path=str(path), note="publish_to is not set")
        return
    try:
        manifest = publish_adapter(config, trained, path)
    except StorageError as error:
        raise StorageError(
            f"publish_to {config.publish_to}: {error}; the adapter is kept in {path}, and starting again with "
            "resume_from_checkpoint latest publishes it"
        ) from error
    progress.published(manifest.reference)
    if not trained.may_be_latest:
        again = f"lithograph adapters rollback {manifest.name} --to {manifest.version}"
        tell(
            _log,
            "not_latest",
            logging.WARNING,
            adapter=manifest.reference,
            note=f"validation did not pass, so that {manifest.name} still means what it meant; try it as "
            f"{manifest.reference}, and {again} makes it the latest all the same",
        )


def check_machine(config: TrainConfig, device: torch.device) -> None:
    """Refuse what this machine cannot do before anything is looked at, downloaded or loaded."""
    dtype = compute_dtype(config, device)
    if config.publish_to:
        try:
            open_storage(config.publish_to, endpoint_url=config.publish_endpoint_url)
        except StorageError as error:  # nothing has been asked of it yet: the URI is wrong, and trying again is no use
            raise ConfigError(f"publish_to: {error}") from error
    for name in (config.base_model_precision, config.text_encoder_1_precision):
        if name != "auto":
            check_precision(Precision(name), device=device, dtype=dtype, offload=_offload(config))
    if config.enable_group_offload and device.type == "cpu":
        raise ConfigError("enable_group_offload: it keeps weights off a GPU, and the device is the CPU: leave it out")


def prepare_model(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, Encoders]:
    """Find the model, and decide what is ``auto``."""
    flavour = resolve(config.flavour, revision=config.revision)
    if config.aspect_bucket_alignment < 64 and flavour.settings.default_size_px >= 512:
        raise ConfigError(
            f"aspect_bucket_alignment: {config.aspect_bucket_alignment} is less than 64, the grid that "
            f"{flavour.name} was trained on"
        )
    config = decide(config, flavour, device)
    encoders = Encoders(
        flavour=flavour,
        device=device,
        dtype=compute_dtype(config, device),
        text_encoder_precision=Precision(config.text_encoder_1_precision),
        vae_batch=config.vae_batch_size,
    )
    return config, encoders


def make_output(folder: Path) -> None:
    """See that it can be written before anything is computed. Raises ``StorageError``."""
    probe = folder / f".writable-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"output_dir {folder} cannot be written: {error.strerror or error}; give a directory that can"
        ) from error


def total_steps(config: TrainConfig, sampler: Sampler) -> int:
    """Optimizer steps in all."""
    if config.max_train_steps:
        return config.max_train_steps
    if config.num_train_epochs:
        return max(1, config.num_train_epochs * sampler.batches_per_epoch // config.gradient_accumulation_steps)
    return DEFAULT_STEPS


def _fill_cache(
    encoders: Encoders,
    cache: Cache,
    inventory: Inventory,
    drawn: Sequence[Scene],
    world: World,
    interruption: Interruption,
    progress: Progress,
) -> None:
    # Prompts first: of one that is too long, nobody should hear after hours.
    captions = list(dict.fromkeys([*prompts_of(drawn), *captions_of(inventory.samples)]))

    def on_done(kind: str, done: int, total: int, found: int) -> None:
        interruption.check()
        progress.cache(kind, done, total, found)

    encode_captions(encoders, cache, captions, on_done, share=world.rank, shares=world.size)
    encode_pictures(encoders, cache, inventory.samples, on_done, share=world.rank, shares=world.size)
    gc.collect()  # the encoders are to be out of memory before the transformer comes
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if world.is_first:
        cache.prune()
    world.wait()


@contextmanager
def _recorded(config: TrainConfig, *, writes: bool = True) -> Iterator[None]:
    """What fails before there is anything to count is in the run's record all the same."""
    try:
        yield
    except Exception as error:
        if writes:
            make_output(config.output_dir)
        with _progress(config, 0, show_bar=False, writes=writes) as progress:
            said = str(error) if isinstance(error, LithographError) else f"{type(error).__name__}: {error}"
            progress.finish("failed", said, int(outcome_of(error)))
        raise


def _offload(config: TrainConfig) -> Offload:
    return Offload.GROUP if config.enable_group_offload else Offload.NONE


def _progress(config: TrainConfig, steps: int, *, show_bar: bool, writes: bool) -> Progress:
    return Progress(
        config.output_dir,
        run_id=config.tracker_run_name or _run_id(config),
        config=public_config(config),
        total_steps=steps,
        start_step=0,
        tensorboard=config.report_to == "tensorboard",
        metrics_port=config.metrics_port,
        pushgateway_url=config.pushgateway_url,
        show_bar=show_bar,
        writes=writes,
    )


def _run_id(config: TrainConfig) -> str:
    """The same one for every try of a run that resumes: a Pushgateway keeps a group for each."""
    if config.resume_from_checkpoint is not None and (config.output_dir / RUN_FILE).exists():
        with suppress(DataError):  # damaged: the record begins anew
            return read_run(config.output_dir).run_id
    return f"{config.adapter_name or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
