"""The numbers that an adapter trains, from a workload and the transformer's sizes. No torch."""

import math

from longcat.model.memory.weights import Transformer
from trainer.config.simpletuner.lycoris_layer import LayerOptions
from trainer.config.targets import selects
from trainer.memory.workload import Workload


def is_target(workload: Workload, name: str) -> bool:
    """Return True if the adapter changes the layer of that name."""
    if workload.lycoris is not None:
        return workload.lycoris.options_of(name) is not None
    return selects(workload.lora_targets, name)


def trained_numbers(model: Transformer, workload: Workload) -> int:
    """Return how many numbers the adapter has."""
    targets = [layer for layer in model.linears() if is_target(workload, layer.name)]
    if workload.lycoris is not None:
        return sum(
            math.prod(shape)
            for layer in targets
            for shape in lycoris_options(workload, layer.name).shapes(layer.width_in, layer.width_out).values()
        )
    matrices = sum(workload.lora_rank * (layer.width_in + layer.width_out) for layer in targets)
    return matrices + (sum(layer.width_out for layer in targets) if workload.use_dora else 0)


def lycoris_options(workload: Workload, name: str) -> LayerOptions:
    """Return the options of a layer that is a target."""
    options = workload.lycoris.options_of(name) if workload.lycoris is not None else None
    assert options is not None
    return options


def slot_rank(model: Transformer, workload: Workload) -> int:
    """Return the rank of the slot in which validation pictures use the adapter."""
    if workload.lycoris is None:
        return workload.lora_rank
    targets = [layer for layer in model.linears() if is_target(workload, layer.name)]
    return max(
        (lycoris_options(workload, layer.name).slot_rank(layer.width_in, layer.width_out) for layer in targets),
        default=0,
    )
