"""The decision behind ``--flavour auto``: the published model where this machine can serve it, else the embedded one.

No torch: the GPU is looked at in a child process.
"""

import logging
from collections.abc import Callable

from longcat.errors import ConfigError
from longcat.model.device.probe import DeviceFacts, probe_devices
from longcat.model.flavour import structure
from longcat.model.memory.device import usable_bytes
from longcat.model.precision import Offload, Precision
from longcat.model.weights import Weights, WeightsState, find_weights
from longcat.problem import Problem
from service.config import ModelConfig
from service.memory.choice import GivenSettings, choose
from service.memory.plan import ServingWorkload
from service.memory.settings import workload_of

AUTO = "auto"
PUBLISHED, DEMO = "final", "embedded"

_GIB = 2**30


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
    """Return the configuration with the flavour and the reason; ``weights`` is called if a GPU suits.

    A precision that is ``auto`` stays so: the engine decides it by the memory that is free when it starts.
    """
    suits, reason = _judge(config, device, weights)
    chosen: dict[str, object] = {"flavour_reason": reason}
    chosen |= {"flavour": PUBLISHED} if suits else {"flavour": DEMO, "revision": None}
    return config.model_copy(update=chosen)


def _judge(config: ModelConfig, device: DeviceFacts, weights: Callable[[], Weights]) -> tuple[bool, Problem]:
    """Return whether the published model can be served, and the reason."""
    if device.gpu_bytes is None:
        return False, Problem(
            code="flavour_auto_without_gpu", template="the embedded demo model is used: there is no CUDA GPU",
            remedy_template="to serve the published model all the same, give --flavour final",
        )  # fmt: skip
    chosen = _chosen(config, device.gpu_bytes)
    if chosen is None:
        return False, Problem(
            code="flavour_auto_gpu_too_small",
            template="the embedded demo model is used: {gpu} has {gpu_gib} GiB, too few for the published model",
            remedy_template="to serve it in less memory, slower, give --flavour final --offload group",
            details={"gpu": device.gpu, "gpu_gib": _gib(device.gpu_bytes)},
        )
    if problem := _weights_problem(weights()):
        return False, problem
    return True, Problem(
        code="flavour_auto_final", template="the published model is used, {precision}: {gpu} has {gpu_gib} GiB",
        details={
            "gpu": device.gpu, "gpu_gib": _gib(device.gpu_bytes),
            "precision": "bfloat16" if chosen.precision is Precision.NO_CHANGE else chosen.precision.value,
        },
    )  # fmt: skip


def _chosen(config: ModelConfig, gpu_bytes: int) -> ServingWorkload | None:
    """Return the settings in which the published model fits; None if there are none.

    Offload layer by layer counts only if the options ask for it.
    """
    given = GivenSettings.of(config, None, None)
    workload = workload_of(structure(PUBLISHED), dtype="bfloat16", has_adapters=True, max_pixels=None)
    try:
        choice = choose(given, workload, usable_bytes(gpu_bytes))
    except ConfigError:
        return None
    chosen = choice.plan.workload
    return chosen if choice.fits and chosen.offload in (given.offload, Offload.NONE, Offload.MODEL) else None


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
