"""Cold start of a whole model from files, as ``lithograph serve`` makes it: seconds and peaks of each stage."""

import resource
import time
from functools import partial

from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import GIB, PeakMemory
from longcat.model.flavour import resolve
from longcat.model.tokenizer import plain_ids
from service.config import ModelConfig
from service.renderer import Renderer
from service.wire.limits import Limits
from service.wire.schema import GenerateRequest


def run(kit: Kit) -> None:
    """Start from files, plain and quantized."""
    for precision in ("no_change", "int8-torchao"):
        kit.checks.run(f"from files to a picture, {precision}", partial(_start, kit, precision))


def _start(kit: Kit, precision: str, check: Check) -> None:
    folder = kit.model.written()
    memory = PeakMemory(kit.device)
    begin = time.monotonic()
    flavour = resolve(folder)
    check.note(files_s=time.monotonic() - begin)
    begin = time.monotonic()
    config = ModelConfig(
        flavour=folder, precision=precision, text_encoder_precision=precision, device=kit.settings.device
    )
    renderer = Renderer(config, flavour, max_rows=2)
    check.note(load_s=time.monotonic() - begin, **memory.figures())
    check.note(host_peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    limits = Limits.of_model(flavour, has_adapters=False)
    request = limits.resolve(
        GenerateRequest(prompt="a red apple", steps=4, seed=1), plain_ids(renderer.model.tokenizer)
    )
    for name in ("first_picture_s", "second_picture_s"):
        begin = time.monotonic()
        renderer.render(request)
        check.note(**{name: time.monotonic() - begin})
    if peak := memory.peak_bytes:
        check.note(peak_gib=peak / GIB)
