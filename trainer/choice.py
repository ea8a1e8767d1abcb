"""What ``auto`` means: the precision and the checkpointing that fit a device and slow training down the least. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from longcat.errors import ConfigError
from longcat.precision import Precision
from trainer.memory import Plan, Workload, plan, readable
from trainer.room import usable_bytes

_PRECISIONS = (Precision.NO_CHANGE, Precision.INT8_TORCHAO, Precision.INT8_QUANTO, Precision.INT4_QUANTO)
"""In which ``auto`` is tried: the least that training slows down first."""
_CHECKPOINTING = (0, 2, 1)
"""Likewise: computing nothing again, every second block, every block."""


def alternatives(workload: Workload) -> tuple[Plan, ...]:
    """Every precision that can train on that device, with every choice of checkpointing."""
    settled = replace(workload, text_encoder_precision=_given(workload.text_encoder_precision))
    return tuple(
        plan(replace(settled, precision=precision, checkpointing=every))
        for precision in Precision
        if _can(precision, workload) and (workload.parts == 1 or precision is Precision.NO_CHANGE)
        for every in _CHECKPOINTING
    )


def choose(workload: Workload, available_bytes: int) -> Workload:
    """Decide what is ``auto``: what fits and slows training down the least.

    Precisions in the order of ``_PRECISIONS``, each without checkpointing, with every second block, with all. What is not
    ``auto`` stays. Raises ``ConfigError`` that says what to lower if nothing fits.
    """
    least: Plan | None = None
    for choice in _choices(workload):
        planned = plan(choice)
        if fits(planned, available_bytes):
            return choice
        if least is None or planned.most_bytes < least.most_bytes:
            least = planned
    assert least is not None
    raise ConfigError(_too_much(workload, least, available_bytes))


def fits(planned: Plan, available_bytes: int) -> bool:
    """Whether it takes no more of a device than a plan may fill."""
    return planned.most_bytes <= usable_bytes(available_bytes)


def _choices(workload: Workload) -> Iterator[Workload]:
    precisions: Sequence[Precision] = _PRECISIONS if workload.precision == "auto" else (workload.precision,)
    every: Sequence[int | None] = _CHECKPOINTING if workload.checkpointing == "auto" else (workload.checkpointing,)
    texts: Sequence[Precision] = (
        _PRECISIONS if workload.text_encoder_precision == "auto" else (workload.text_encoder_precision,)
    )
    for precision in precisions:
        for checkpointing in every:
            for text in texts:
                settled = replace(
                    workload, precision=precision, checkpointing=checkpointing, text_encoder_precision=text
                )
                given = precision == workload.precision, text == workload.text_encoder_precision
                if (given[0] or _can(precision, workload)) and (given[1] or _can(text, workload)):
                    yield settled


def _can(precision: Precision, workload: Workload) -> bool:
    """As ``longcat.quantize.check_precision``, which needs torch."""
    is_quanto = precision.value.endswith("-quanto")
    if precision is Precision.INT4_QUANTO and workload.dtype != "bfloat16":
        return False
    if precision is Precision.FP8_QUANTO and workload.device.startswith("cuda"):
        return False
    if precision in (Precision.FP8_QUANTO, Precision.FP8_TORCHAO) and workload.device.startswith("mps"):
        return False
    return not (is_quanto and workload.offload)


def _given(precision: Precision | Literal["auto"]) -> Precision:
    return Precision.NO_CHANGE if precision == "auto" else precision


def _too_much(workload: Workload, least: Plan, available_bytes: int) -> str:
    phase = max(least.peak_bytes, key=lambda phase: least.peak_bytes[phase])
    found = least.workload
    base = f"base_model_precision {found.precision} and {found.checkpointing_words}"
    text = f"text_encoder_1_precision {found.text_encoder_precision}"
    tried, remedies = {
        "loading": ("the base is quantized once it is in memory", ["use a device with more memory"]),
        "caching captions": (text, ["fill cache_dir on a larger device"]),
        "caching latents": (f"vae_batch_size {workload.vae_batch}", ["lower vae_batch_size", "lower resolution"]),
        "training": (base, ["lower train_batch_size", "lower resolution", "lower lora_rank"]),
        "validation": (base, ["lower validation_resolution", "set validation_disable"]),
    }[phase]
    if phase == "caching captions" and workload.text_encoder_precision != "auto":
        remedies.insert(0, "set text_encoder_1_precision to auto")
    if phase in ("training", "validation"):
        if not found.checkpointing and phase == "training":
            remedies.append("set gradient_checkpointing")
        if workload.precision != "auto":
            remedies.append("set base_model_precision to auto")
        if workload.device != "cpu" and not workload.offload:
            remedies.append("set enable_group_offload")
    return (
        f"{phase} takes {readable(least.most_bytes)} even with {tried}, and {readable(usable_bytes(available_bytes))} of "
        f"the device's {readable(available_bytes)} can be used: {', or '.join(remedies)}"
    )
