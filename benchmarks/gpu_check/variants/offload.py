"""Offload modes: time of a picture, peak memory, and bytes that are copied each way."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import GIB, PeakMemory
from benchmarks.gpu_check.subjects.pictures import EngineRun
from benchmarks.memory_plan import storages
from longcat.errors import UserError
from longcat.model.precision import Offload, Precision

_STEPS = 4
_SOURCES = {"aten.copy_.default": 1, "aten._to_copy.default": 0}
"""The operators that copy, and the place of the source among their arguments."""


def run(kit: Kit) -> None:
    """Measure each mode, plain and quantized."""
    for precision in (
        (Precision.INT8_TORCHAO,) if kit.settings.is_short else (Precision.NO_CHANGE, Precision.INT8_TORCHAO)
    ):
        for offload in Offload:
            kit.checks.run(f"{offload.value}, {precision.value}", partial(_measure, kit, precision, offload))


def _measure(kit: Kit, precision: Precision, offload: Offload, check: Check) -> None:
    if kit.settings.is_cpu and offload is not Offload.NONE:
        raise Skipped("offloading moves weights off a GPU")
    try:
        model = kit.model.components(precision=precision, text_encoder_precision=precision, offload=offload)
    except UserError as error:
        raise Skipped(f"refused before loading: {error}") from error
    pictures = EngineRun(model, max_rows=2, background=False)
    pictures.submit("first", steps=1)
    pictures.run()
    memory = PeakMemory(kit.device)
    pictures.submit("timed", steps=_STEPS, guidance_scale=4.5)
    check.note(s=pictures.run(), steps=_STEPS, **memory.figures())
    pictures.submit("counted", steps=_STEPS, guidance_scale=4.5, seed=2)
    with Copies() as copies:
        pictures.run()
    check.note(to_device_gib=copies.to_device / GIB, to_host_gib=copies.to_host / GIB)
    pictures.pixels("timed")
    weights = sum(parameter.nbytes for parameter in model.transformer.parameters())
    check.require(kit.settings.is_cpu or copies.to_host < 0.5 * weights, "weights are copied back to the host")


class Copies(TorchDispatchMode):
    """The bytes of all copies between main memory and the device, in this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.to_device = self.to_host = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count it if it is a copy."""
        result = func(*args, **(kwargs or {}))
        if (place := _SOURCES.get(str(func))) is not None:
            self._count(args[place], result)
        return result

    def _count(self, source: Tensor, result: Tensor) -> None:
        if source.device.type == result.device.type:
            return
        size = sum(dict(storages(source)).values()) if type(source) is not Tensor else source.nbytes
        if result.device.type == "cpu":
            self.to_host += size
        else:
            self.to_device += size
