"""A precision: memory of the weights, time of a step, and error against the unquantized model."""

from functools import partial

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import GIB, PeakMemory, relative_error, seconds_of
from benchmarks.gpu_check.subjects.inputs import Inputs
from benchmarks.memory_plan import storages
from longcat.errors import UserError
from longcat.model.precision import Precision
from longcat.model.quantized.quantize import check_precision, quantize_base
from longcat.sampling.forward import Forward

_LARGEST_ERROR = {"int8": 0.03, "fp8": 0.1, "int4": 0.3}
"""About three times the errors of 321 M random parameters on a CPU: 0.009, 0.036, 0.09."""


def run(kit: Kit, name: str) -> None:
    """Check one precision."""
    kit.checks.run("memory, step and error", partial(_measure, kit, Precision(name)))


def _measure(kit: Kit, precision: Precision, check: Check) -> None:
    try:
        check_precision(precision, device=kit.device)
    except UserError as error:
        raise Skipped(f"refused before loading: {error}") from error
    transformer = kit.model.transformer()
    inputs = Inputs.make(kit.model, rows=2, side_px=kit.model.side_px)
    step = inputs.ours(Forward(transformer, kit.device))
    plain, expected = seconds_of(step, kit.device, rounds=kit.rounds), step()
    del step
    quantize_base(transformer, precision, device=kit.device, training=False)
    places = {place: size for parameter in transformer.parameters() for place, size in storages(parameter)}
    check.note(weights_gib=sum(places.values()) / GIB)
    step = inputs.ours(Forward(transformer, kit.device))
    memory = PeakMemory(kit.device)
    seconds = seconds_of(step, kit.device, rounds=kit.rounds)
    difference = relative_error(step(), expected)
    check.note(ms=seconds * 1000, of_unquantized=seconds / plain, relative_error=difference, **memory.figures())
    most = _LARGEST_ERROR[precision.value.split("-")[0]]
    check.require(difference < most, f"the relative error is {difference:.2g}, and {most:.2g} is allowed")
