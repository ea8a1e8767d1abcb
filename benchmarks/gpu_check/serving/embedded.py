"""The embedded model with its real weights: pictures on the device against a CPU's, in every precision and offload mode."""

from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.subjects.pictures import EngineRun
from longcat.errors import UserError
from longcat.model.flavour import resolve
from longcat.model.loading import load
from longcat.model.precision import Offload, Precision

_REQUESTS: tuple[dict[str, Any], ...] = (
    {"width": 64, "height": 64},
    {"width": 128, "height": 64, "guidance_scale": 1.0, "steps": 4, "seed": 2},
)
_TOLERANCE = 1.0
"""Mean difference of pixels, of 255: products of several rows round differently in bfloat16."""
_FP8_TOLERANCE = 4.0
"""The same where the GPU also rounds activations to fp8, which a CPU does not."""


def run(kit: Kit) -> None:
    """Compare pictures."""
    for precision in Precision:
        for offload in Offload:
            kit.checks.run(f"{precision.value}, offload {offload.value}", partial(_compare, kit, precision, offload))


def _compare(kit: Kit, precision: Precision, offload: Offload, check: Check) -> None:
    try:
        actual = _draw(str(kit.device), precision, offload)
    except UserError as error:
        raise Skipped(f"refused before loading: {error}") from error
    expected = _on_cpu(precision)
    difference = max(float(np.abs(a - b).mean()) for a, b in zip(actual, expected, strict=True))
    tolerance = _FP8_TOLERANCE if precision is Precision.FP8_TORCHAO else _TOLERANCE
    check.note(mean_difference=difference)
    check.require(difference < tolerance, f"pictures differ from the CPU's by {difference:.2f} of 255")


@cache
def _on_cpu(precision: Precision) -> list[np.ndarray]:
    return _draw("cpu", precision, Offload.NONE)


def _draw(device: str, precision: Precision, offload: Offload) -> list[np.ndarray]:
    """Generate all requests together."""
    model = load(resolve("embedded"), device=device, dtype="bfloat16", precision=precision, offload=offload)
    pictures = EngineRun(model, background=offload is Offload.NONE)
    for number, fields in enumerate(_REQUESTS):
        pictures.submit(str(number), **{"steps": 3} | fields)
    pictures.run()
    return [pictures.pixels(str(number)) for number in range(len(_REQUESTS))]
