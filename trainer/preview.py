"""``lithograph validate``: the validation prompts with any adapter, without training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from longcat.adapter import fetch, find, parse_reference
from longcat.errors import ConfigError
from longcat.loading import load_scheduler_config, load_transformer, load_vae
from longcat.lora import LoraWeights, check_lora, load_lora, lora_targets
from longcat.quantize import quantize_base
from longcat.storage import open_storage
from trainer.cache import Cache
from trainer.config import TrainConfig
from trainer.preparation import encode_captions
from trainer.run import check_machine, prepare_model
from trainer.validation import Validation, Verdict, prompts_of, scenes
from trainer.world import World


def preview(config: TrainConfig, adapter: str | None, *, show: Callable[[str, int, int, str], None]) -> Verdict:
    """Draw the scenes into ``output_dir/validation``: with the base, and with ``adapter`` if there is one.

    ``show`` hears what is being done, how much of how much is, and words about it.
    Raises ``ConfigError`` if ``adapter`` is neither a file nor in ``publish_to``, ``AdapterError`` if it does not fit.
    """
    world = World(config.device)
    check_machine(config, world.device)
    config, encoders = prepare_model(config, world.device)
    flavour = encoders.flavour
    cache = Cache(config.cache_folder)
    drawn = scenes(config, encoders, ())
    weights, step = (None, 0) if adapter is None else _weights(config, adapter)
    encode_captions(encoders, cache, prompts_of(drawn), lambda *_: None)
    transformer = load_transformer(flavour, encoders.dtype)
    if weights is not None:
        check_lora(weights, lora_targets(transformer), max_rank=weights.rank)
    # As the service quantizes it: what is shown is what it draws.
    quantize_base(transformer, config.precision, device=world.device, training=False)
    validation = Validation(
        config,
        transformer.to(world.device),
        encoders,
        cache,
        drawn,
        scheduler_config=load_scheduler_config(flavour),
        load_vae=lambda: load_vae(flavour, encoders.dtype).to(world.device),
        on_step=lambda done, total, what: show("drawing", done, total, what),
        rank=1 if weights is None else weights.rank,
    )
    if weights is None:
        files = validation.draw_base()
        return Verdict(step=0, files=files, change=0.0, drift=0.0, reasons=())
    verdict = validation.run(weights, step=step)
    return replace(verdict, files=(*verdict.files, validation.folder / "grid.png"))


def _weights(config: TrainConfig, adapter: str) -> tuple[LoraWeights, int]:
    """An adapter's weights, and the steps that it was trained for."""
    if Path(adapter).is_file():
        return load_lora(Path(adapter)), 0
    if config.publish_to is None:
        raise ConfigError(f"--adapter {adapter!r} is no file; to name one in storage, set publish_to to where it is")
    storage = open_storage(config.publish_to, endpoint_url=config.publish_endpoint_url)
    manifest = find(storage, parse_reference(adapter))
    weights = load_lora(fetch(storage, manifest, config.cache_folder / "adapters"))
    return weights, manifest.training.steps if manifest.training else 0
