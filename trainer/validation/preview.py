"""``lithograph validate``: the validation prompts with any adapter, without training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from longcat.adapter.artifact import fetch, find
from longcat.adapter.modules import adaptable_modules
from longcat.adapter.reference import parse_reference
from longcat.adapter.verification import check_lora, load_version
from longcat.adapter.weights.file import load_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import ConfigError
from longcat.model.flavour import Flavour
from longcat.model.loading import load_scheduler_config, load_transformer, load_vae
from longcat.storage.opening import open_storage
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.data.sample import Sample
from trainer.data.scan import take_inventory
from trainer.encode.cache import Cache
from trainer.encode.references import encode_prompts, encode_references
from trainer.loop.distributed import ProcessGroup
from trainer.model.base import check_machine, prepare_model
from trainer.validation.prompts import (
    PromptSettings,
    inputs_of_prompts,
    references_of_prompts,
    validation_prompts,
)
from trainer.validation.validation import Validation, ValidationResult, ValidationSettings


def preview(
    config: TrainConfig, adapter: str | None, *, show: Callable[[str, int, int, str], None]
) -> ValidationResult:
    """Sample the prompts into ``output_dir/validation``: with the base and, if given, with ``adapter``.

    ``show`` is called with the activity, how much of it is done, of how much, and a description.
    Raises ``ConfigError`` if ``adapter`` is neither a file nor in ``publish_to``, ``AdapterError`` if it does not fit.
    """
    device = ProcessGroup(config.device).device
    check_machine(config, device)
    config, encoders = prepare_model(config, device)
    flavour = encoders.flavour
    cache = Cache(config.cache_folder)
    prompts = validation_prompts(select(config, PromptSettings), encoders, _pairs(config, flavour))
    weights, step = (None, 0) if adapter is None else _load_adapter(config, adapter)
    encode_prompts(encoders, cache, inputs_of_prompts(prompts), lambda *_: None)
    encode_references(encoders, cache, references_of_prompts(prompts), lambda *_: None)
    # Quantized as by the service, so that the pictures are those that it generates.
    transformer = load_transformer(flavour, encoders.dtype, precision=config.precision, device=device)
    if weights is not None:
        check_lora(weights, adaptable_modules(transformer), max_rank=weights.rank)
    validation = Validation(
        select(config, ValidationSettings),
        transformer.to(device),
        encoders,
        cache,
        prompts,
        scheduler_config=load_scheduler_config(flavour),
        load_vae=lambda: load_vae(flavour, encoders.dtype).to(device),
        on_step=lambda done, total, picture: show("denoising", done, total, picture),
        rank=1 if weights is None else weights.rank,
    )
    if weights is None:
        return ValidationResult(step=0, files=validation.sample_base(), change=0.0, drift=0.0, problems=())
    result = validation.run(weights, step=step)
    return replace(result, files=(*result.files, validation.folder.grid))


def _pairs(config: TrainConfig, flavour: Flavour) -> tuple[Sample, ...]:
    """Return the pairs whose pictures a model that edits is shown, unless the configuration gives others."""
    if not flavour.settings.edits or config.validation_input or not config.datasets:
        return ()
    inventory = take_inventory(config, lambda: flavour)
    return (*inventory.held_out, *inventory.samples)


def _load_adapter(config: TrainConfig, adapter: str) -> tuple[LoraWeights, int]:
    """Return an adapter's weights and the number of steps that it was trained for."""
    if Path(adapter).is_file():
        return load_lora(Path(adapter)), 0
    if config.publish_to is None:
        raise ConfigError(
            "adapter_file_missing",
            "is not a file",
            remedy="give a safetensors file, or set publish_to to the storage that holds this adapter",
            field="adapter",
            value=adapter,
        )
    storage = open_storage(config.publish_to, endpoint_url=config.publish_endpoint_url)
    manifest = find(storage, parse_reference(adapter))
    weights = load_version(fetch(storage, manifest, config.cache_folder / "adapters"), manifest)
    return weights, manifest.training.steps if manifest.training else 0
