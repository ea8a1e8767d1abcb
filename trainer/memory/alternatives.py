"""The meaning of ``auto``: the precision and checkpointing that fit a device and slow training the least. No torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from longcat.errors import ConfigError
from longcat.model.memory.device import readable, usable_bytes
from longcat.model.precision import Precision
from longcat.problem import Problem
from trainer.memory.plan import Plan, plan
from trainer.memory.workload import Workload

_PRECISIONS = (Precision.NO_CHANGE, Precision.INT8_TORCHAO, Precision.INT8_QUANTO, Precision.INT4_QUANTO)
"""Precisions that ``auto`` tries, in this order: the one that slows training the least comes first."""
_CHECKPOINTING = (0, 2, 1)
"""Checkpointing that ``auto`` tries, in this order: no block, every second block, every block."""

_TOO_LARGE: Mapping[str, Problem] = {
    "loading": Problem(
        code="loading_does_not_fit",
        template="loading takes {needed}, as the base is quantized only once it is in memory, and {usable} of the device's "
        "{total} can be used",
        remedy_template="use a device with more memory",
    ),
    "caching captions": Problem(
        code="caching_captions_does_not_fit",
        template="caching captions takes {needed} even with text_encoder_1_precision {precision}, and {usable} of the "
        "device's {total} can be used",
        remedy_template="set text_encoder_1_precision auto, or fill cache_dir on a larger device",
    ),
    "caching latents": Problem(
        code="caching_latents_does_not_fit",
        template="caching latents takes {needed} even with vae_batch_size {vae_batch}, and {usable} of the device's {total} "
        "can be used",
        remedy_template="lower vae_batch_size or resolution",
    ),
    "training": Problem(
        code="training_does_not_fit",
        template="training takes {needed} even with {tried}, and {usable} of the device's {total} can be used",
        remedy_template="lower train_batch_size, resolution or lora_rank",
    ),
    "training, untried": Problem(
        code="training_does_not_fit_yet",
        template="training takes {needed} even with {tried}, and {usable} of the device's {total} can be used",
        remedy_template="lower train_batch_size, resolution or lora_rank, or set {untried}",
    ),
    "validation": Problem(
        code="validation_does_not_fit",
        template="validation takes {needed} even with {tried}, and {usable} of the device's {total} can be used",
        remedy_template="lower validation_resolution, or set validation_disable",
    ),
    "validation, untried": Problem(
        code="validation_does_not_fit_yet",
        template="validation takes {needed} even with {tried}, and {usable} of the device's {total} can be used",
        remedy_template="lower validation_resolution, or set validation_disable or {untried}",
    ),
}
"""Problems by the phase that takes the most memory, and by whether options that save memory are left to be set."""


def alternatives(workload: Workload) -> tuple[Plan, ...]:
    """Plan every precision that can train on the device, with every choice of checkpointing."""
    decided = replace(workload, text_encoder_precision=_or_no_change(workload.text_encoder_precision))
    return tuple(
        plan(replace(decided, precision=precision, checkpointing=every))
        for precision in Precision
        if _is_supported(precision, workload) and (workload.parts == 1 or precision is Precision.NO_CHANGE)
        for every in _CHECKPOINTING
    )


def choose(workload: Workload, available_bytes: int) -> Workload:
    """Replace every ``auto`` by the value that fits and slows training the least; other settings stay.

    Precisions are tried in the order of ``_PRECISIONS``, each without checkpointing, with every second block, with all
    blocks. Raises ``ConfigError`` with the settings to lower if nothing fits.
    """
    least: Plan | None = None
    for candidate in _candidates(workload):
        planned = plan(candidate)
        if fits(planned, available_bytes):
            return candidate
        if least is None or planned.most_bytes < least.most_bytes:
            least = planned
    assert least is not None
    raise _too_large(workload, least, available_bytes)


def fits(planned: Plan, available_bytes: int) -> bool:
    """Return True if the plan takes no more of a device than a plan may fill."""
    return planned.most_bytes <= usable_bytes(available_bytes)


def _candidates(workload: Workload) -> Iterator[Workload]:
    precisions: Sequence[Precision] = _PRECISIONS if workload.precision == "auto" else (workload.precision,)
    every: Sequence[int | None] = _CHECKPOINTING if workload.checkpointing == "auto" else (workload.checkpointing,)
    texts: Sequence[Precision] = (
        _PRECISIONS if workload.text_encoder_precision == "auto" else (workload.text_encoder_precision,)
    )
    for precision in precisions:
        for checkpointing in every:
            for text in texts:
                decided = replace(
                    workload, precision=precision, checkpointing=checkpointing, text_encoder_precision=text
                )
                given = precision == workload.precision, text == workload.text_encoder_precision
                if (given[0] or _is_supported(precision, workload)) and (given[1] or _is_supported(text, workload)):
                    yield decided


def _is_supported(precision: Precision, workload: Workload) -> bool:
    """Return True for a precision that the device supports, as ``check_precision`` of ``longcat.model.quantized`` does."""
    return not (precision in (Precision.FP8_QUANTO, Precision.FP8_TORCHAO) and workload.device.startswith("mps"))


def _or_no_change(precision: Precision | Literal["auto"]) -> Precision:
    return Precision.NO_CHANGE if precision == "auto" else precision


def _too_large(workload: Workload, least: Plan, available_bytes: int) -> ConfigError:
    """Return the error for a device that even the least plan does not fit, by the phase that takes the most."""
    largest = max(least.peak_bytes, key=lambda phase: least.peak_bytes[phase])
    phase = "training" if largest == "prior preservation" else largest
    untried = _untried(workload, least, phase)
    details = {
        "needed": readable(least.most_bytes),
        "usable": readable(usable_bytes(available_bytes)),
        "total": readable(available_bytes),
        "tried": f"base_model_precision {least.workload.precision}, {least.workload.checkpointing_words}",
        "untried": untried,
        "precision": Precision(least.workload.text_encoder_precision).value,
        "vae_batch": workload.vae_batch,
    }
    problem = _TOO_LARGE[f"{phase}, untried" if untried else phase]
    return ConfigError.of([replace(problem, details=details)])


def _untried(workload: Workload, least: Plan, phase: str) -> str:
    """Return the options that save memory in that phase and are not set, by name."""
    if phase not in ("training", "validation"):
        return ""
    untried = {
        "gradient_checkpointing": phase == "training" and not least.workload.checkpointing,
        "base_model_precision auto": workload.precision != "auto",
        "enable_group_offload": workload.device != "cpu" and not workload.offload,
    }
    return " or ".join(option for option, is_untried in untried.items() if is_untried)
