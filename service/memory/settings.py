"""The settings of a renderer: as configured, and where they are ``auto``, as chosen for its device. No torch at import."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longcat.logs import log_event
from longcat.model.flavour import Description, Flavour
from longcat.model.memory.device import free_bytes, readable
from longcat.model.precision import Offload, Precision
from service.config import AdapterConfig, ModelConfig
from service.memory.admission import StepMemory
from service.memory.choice import (
    DEFAULT_CAPACITY,
    FORMATS,
    Capacity,
    Choice,
    Format,
    GivenSettings,
    check_format,
    choose,
)
from service.memory.plan import ServingPlan, ServingWorkload

if TYPE_CHECKING:
    import torch

log = logging.getLogger("lithograph")


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """The storage of the weights, the slots and rows, and the memory for steps."""

    format: Format
    capacity: Capacity
    memory: StepMemory | None
    """None where rows alone bound the memory: anywhere but on a CUDA device."""


def decide(
    model: ModelConfig,
    adapters: AdapterConfig | None,
    flavour: Flavour,
    *,
    max_rows: int | None,
    max_pixels: int | None,
    device: "torch.device",
    dtype: str,
) -> ServingSettings:
    """Return the settings for a device of this machine. Raises ``ConfigError`` if nothing fits it."""
    given = GivenSettings.of(model, adapters, max_rows)
    if device.type != "cuda":
        return ServingSettings(format=given.format(FORMATS[0]), capacity=given.capacity(DEFAULT_CAPACITY), memory=None)
    check_format(given)
    workload = workload_of(flavour, dtype=dtype, has_adapters=adapters is not None, max_pixels=max_pixels)
    choice = choose(given, workload, free_bytes(device))
    _log(choice)
    made, load = choice.plan, choice.plan.workload
    return ServingSettings(
        format=Format(load.precision, load.text_encoder_precision, load.offload),
        capacity=Capacity(load.slots, load.rank, load.rows),
        memory=StepMemory(plan=made, free_bytes=made.free_bytes(choice.usable_bytes)),
    )


def workload_of(
    model: Flavour | Description, *, dtype: str, has_adapters: bool, max_pixels: int | None
) -> ServingWorkload:
    """Return the workload of a model, with the best format and capacity."""
    settings, (slots, rank, rows) = model.settings, DEFAULT_CAPACITY
    return ServingWorkload(
        folder=model.folder,
        precision=Precision.NO_CHANGE,
        text_encoder_precision=Precision.NO_CHANGE,
        dtype=dtype,
        offload=Offload.NONE,
        slots=slots if has_adapters else 0,
        rank=rank,
        rows=rows,
        default_px=settings.default_size_px,
        largest_pixels=max_pixels or settings.max_pixels,
        prompt_tokens=settings.max_prompt_tokens,
        rewrites=settings.rewrites_prompts,
        edits=settings.edits,
    )


def words(made: ServingPlan) -> str:
    """Return a plan's settings in one line."""
    load = made.workload
    slots = f", {load.slots} adapter slots of rank {load.rank}" if load.slots else ""
    return (
        f"precision {load.precision}, text encoder {load.text_encoder_precision}, offload {load.offload}, {load.rows} rows"
        f"{slots}: {readable(made.most_bytes)}"
    )


def _log(choice: Choice) -> None:
    log_event(
        log,
        "memory_choice" if choice.fits else "memory_choice_waits",
        chosen=words(choice.plan),
        usable=readable(choice.usable_bytes),
        also_fits=[words(other) for other in choice.others],
    )
