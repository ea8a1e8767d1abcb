"""The base model of a training: checks of the machine, then precisions, then the frozen transformer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import LongCatImageTransformer2DModel

from longcat.errors import ConfigError, UserError
from longcat.model.flavour import Flavour, resolve
from longcat.model.loading import load_transformer
from longcat.model.precision import Offload, Precision
from longcat.model.published.models import ModelSettings
from longcat.model.quantized.quantize import check_precision
from longcat.model.shape import GRID_PX, PUBLISHED_PX
from trainer.config.links import editing_problems
from trainer.config.options import TrainConfig
from trainer.encode.preparation import Encoders
from trainer.memory.forecast import compute_dtype, decide
from trainer.model.lycoris import lycoris_layers


def check_machine(config: TrainConfig, device: torch.device) -> None:
    """Check that this machine supports the settings, before anything is downloaded or loaded. Raises ``UserError``."""
    compute_dtype(config, device)
    for field, name in (
        ("base_model_precision", config.base_model_precision),
        ("text_encoder_1_precision", config.text_encoder_1_precision),
    ):
        if name != "auto":
            try:
                check_precision(Precision(name), device=device)
            except UserError as error:
                raise error.within(field=field, value=name) from error
    if config.enable_group_offload and device.type == "cpu":
        raise ConfigError(
            "group_offload_on_cpu",
            "moves weights off a GPU, and the device is the CPU",
            remedy="leave it out",
            field="enable_group_offload",
            value=True,
        )


def check_editing(config: TrainConfig, settings: ModelSettings) -> None:
    """Check that a model that edits has pairs, and another none. Raises ``ConfigError``."""
    if problems := list(editing_problems(config, config.datasets, edits=settings.edits)):
        raise ConfigError.of(problems)


def prepare_model(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, Encoders]:
    """Find the model and decide every ``auto``. Return the decided configuration and the encoders, which load lazily."""
    flavour = resolve(config.flavour, revision=config.revision)
    check_editing(config, flavour.settings)
    _check_alignment(config.aspect_bucket_alignment, flavour)
    config = decide(config, flavour, device)
    encoders = Encoders(
        flavour=flavour,
        device=device,
        dtype=compute_dtype(config, device),
        text_encoder_precision=Precision(config.text_encoder_1_precision),
        vae_batch=config.vae_batch_size,
    )
    return config, encoders


def load_base(config: TrainConfig, encoders: Encoders) -> LongCatImageTransformer2DModel:
    """Load the frozen transformer, quantized for training. It is still in main memory."""
    return load_transformer(
        encoders.flavour,
        encoders.dtype,
        precision=config.precision,
        device=encoders.device,
        training=True,
        offload=_offload(config),
    )


@contextmanager
def without_adapter(transformer: LongCatImageTransformer2DModel) -> Iterator[None]:
    """Disable the adapter's layers, so that the base alone computes, in evaluation mode."""
    has_adapter = hasattr(transformer, "peft_config")
    was_training = transformer.training
    transformer.eval()
    lycoris = [layer for _, layer in lycoris_layers(transformer)]
    if has_adapter:
        transformer.disable_adapters()
    for layer in lycoris:
        layer.is_enabled = False
    try:
        yield
    finally:
        if has_adapter:
            transformer.enable_adapters()
        for layer in lycoris:
            layer.is_enabled = True
        transformer.train(was_training)


def _check_alignment(alignment_px: int, flavour: Flavour) -> None:
    if alignment_px < GRID_PX and flavour.settings.default_size_px >= PUBLISHED_PX:
        raise ConfigError(
            "bucket_alignment_too_small",
            "{flavour} was trained on sides that are multiples of {grid} px",
            remedy="give a multiple of {grid}",
            field="aspect_bucket_alignment",
            value=alignment_px,
            flavour=flavour.name,
            grid=GRID_PX,
        )


def _offload(config: TrainConfig) -> Offload:
    return Offload.GROUP if config.enable_group_offload else Offload.NONE
