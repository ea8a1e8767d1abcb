"""The decision behind ``--flavour auto``: the published model where this machine can serve it, else the embedded one.

No torch: the GPU is looked at in a child process.
"""

import logging
from collections.abc import Callable, Iterator

from longcat.model.devices import DeviceFacts, probe_devices
from longcat.model.flavour import structure
from longcat.model.memory.weights import Transformer, read_autoencoder, read_text_encoder, read_transformer
from longcat.model.precision import Offload, Precision, parse_precision
from longcat.model.weights import Weights, WeightsState, find_weights
from longcat.problem import Problem
from service.config import ModelConfig

AUTO = "auto"
PUBLISHED, DEMO = "final", "embedded"

_GIB = 2**30
_ITEM_BYTES = 2
"""Bytes of a bfloat16 number, the type that GPUs compute in."""
_WORKING_GIB = 7.0
"""Adapter slots, activations of a full forward at 1024 x 1024, and CUDA's own: estimated, not measured."""
_SMALLER = Precision.INT8_QUANTO
"""Precision for GPUs on which the unchanged weights do not fit."""


def settled(config: ModelConfig) -> ModelConfig:
    """Return the configuration with ``auto`` decided for this machine, and log the reason; others stay as they are."""
    if config.flavour != AUTO:
        return config
    device = DeviceFacts(gpu=None, gpu_bytes=None, threads=1)
    if config.device == "auto" or config.device.startswith("cuda"):
        _, _, index = config.device.partition(":")
        device = probe_devices(int(index) if index.isdigit() else 0)
    decided = decide(config, device, lambda: find_weights(PUBLISHED, config.revision))
    logging.getLogger("lithograph").info("flavour auto is %s: %s", decided.flavour, decided.flavour_reason)
    return decided


def decide(config: ModelConfig, device: DeviceFacts, weights: Callable[[], Weights]) -> ModelConfig:
    """Return the configuration with the flavour, the precision and the reason; ``weights`` is called if a GPU suits."""
    reason, precisions = _judge(config, device, weights)
    chosen: dict[str, object] = {"flavour_reason": reason}
    if precisions is None:
        chosen |= {"flavour": DEMO, "revision": None}
    else:
        transformer, text_encoder = precisions
        chosen |= {"flavour": PUBLISHED, "precision": transformer, "text_encoder_precision": text_encoder}
    return config.model_copy(update=chosen)


def needed_bytes(transformer: Precision, text_encoder: Precision, offload: Offload = Offload.NONE) -> int:
    """Return the device memory that serving LongCat-Image takes, in bytes."""
    folder = structure(PUBLISHED).folder
    parts = (
        _transformer_bytes(read_transformer(folder), transformer),
        read_text_encoder(folder).weight_bytes(text_encoder, _ITEM_BYTES),
        read_autoencoder(folder).weight_bytes(_ITEM_BYTES),
    )
    match offload:
        case Offload.NONE:
            weights = sum(parts)
        case Offload.MODEL:
            weights = max(parts)
        case Offload.GROUP:
            weights = 0
    return weights + round(_WORKING_GIB * _GIB)


def _transformer_bytes(model: Transformer, precision: Precision) -> int:
    """Return the bytes of a transformer's weights."""
    return model.top_bytes(_ITEM_BYTES) + sum(model.block_bytes(precision, _ITEM_BYTES))


def _judge(
    config: ModelConfig, device: DeviceFacts, weights: Callable[[], Weights]
) -> tuple[Problem, tuple[str, str] | None]:
    """Return the reason, and the two precisions if the published model can be served."""
    if device.gpu_bytes is None:
        return Problem(
            code="flavour_auto_without_gpu", template="the embedded demo model is used: there is no CUDA GPU",
            remedy_template="to serve the published model all the same, give --flavour final",
        ), None  # fmt: skip
    offload = Offload(config.offload)
    fitting = [pair for pair in _precisions(config) if needed_bytes(*pair, offload) <= device.gpu_bytes]
    if not fitting:
        least = min(needed_bytes(*pair, offload) for pair in _precisions(config))
        return Problem(
            code="flavour_auto_gpu_too_small",
            template="the embedded demo model is used: {gpu} has {gpu_gib} GiB, and the published model takes {gib}",
            remedy_template="to serve it in less memory, give --flavour final and --offload model or --offload group",
            details={"gpu": device.gpu, "gpu_gib": _gib(device.gpu_bytes), "gib": _gib(least)},
        ), None  # fmt: skip
    if problem := _weights_problem(weights()):
        return problem, None
    transformer, text_encoder = fitting[0]
    return Problem(
        code="flavour_auto_final", template="the published model is used, {precision}: {gpu} has {gpu_gib} GiB",
        details={
            "gpu": device.gpu, "gpu_gib": _gib(device.gpu_bytes),
            "precision": "bfloat16" if transformer is Precision.NO_CHANGE else transformer.value,
        },
    ), (transformer.value, text_encoder.value)  # fmt: skip


def _precisions(config: ModelConfig) -> Iterator[tuple[Precision, Precision]]:
    """Yield the precisions of transformer and text encoder, best first: those given, or whatever is not given."""
    given = parse_precision(config.precision), parse_precision(config.text_encoder_precision)
    yield given
    if given == (Precision.NO_CHANGE, Precision.NO_CHANGE):
        yield _SMALLER, _SMALLER


def _weights_problem(weights: Weights) -> Problem | None:
    match weights.state:
        case WeightsState.OFFLINE:
            return Problem(
                code="flavour_auto_offline",
                template="the embedded demo model is used: the published weights are not here, and HF_HUB_OFFLINE is set",
                remedy_template="run `lithograph fetch --flavour final` without it, then start again",
            )
        case WeightsState.UNREACHABLE:
            return Problem(
                code="flavour_auto_hub_unreachable",
                template="the embedded demo model is used: the published weights are not here, and the hub does not answer",
                remedy_template="set HF_ENDPOINT to a mirror, or run `lithograph fetch --flavour final`, then start again",
            )
        case WeightsState.DISK_TOO_SMALL:
            return Problem(
                code="flavour_auto_disk_too_small",
                template="the embedded demo model is used: {gib} GiB of weights are to be downloaded, {free_gib} are free",
                remedy_template="set HF_HOME to a larger disk, then start again",
                details={"gib": _gib(weights.missing_bytes), "free_gib": _gib(weights.free_bytes)},
            )
        case WeightsState.CACHED | WeightsState.FETCHABLE:
            return None


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f}"
