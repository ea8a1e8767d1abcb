"""Cost of adapters in a forward: eight guided pictures with eight adapters of rank 16, against the same without adapters.

Run it with ``make bench-adapters``. Ratios are medians over pairs measured one after the other in one run, of the time on
the clock and of the processor's; the latter hardly depends on other work on the machine. ``loaded`` is the number of
adapters in slots, of which eight are in use: the cost must not depend on it.

``mixed-kinds`` are LoRA, DoRA, LoKr and LoHa in turn, on all linear layers of the blocks. ``whole-transformer`` also changes
modulations, embedders and the output layer. Modulations and the prompt's projection are computed before the steps:
``start_ms`` is their time for one guided picture of 20 steps whose times are not cached, without adapters and with one.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from longcat.logs import silence_import_noise

if TYPE_CHECKING:
    from torch import nn

    from longcat.adapter.weights.lora import Layer, LoraWeights

PICTURES = 8
RANK = 16
LOHA_RANK = 4
LOKR_FACTOR = 16
"""As in SimpleTuner's example: Kronecker products of 16 x 16 and (out / 16) x (in / 16)."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = ("attention", "all-linear", "mixed-kinds", "whole-transformer")
KINDS = ("lora", "dora", "lokr", "loha")
STEPS = 20


def main() -> None:
    """Measure, and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    arguments = parser.parse_args()
    silence_import_noise()
    figures = [
        measure(dtype, targets, loaded, arguments.rounds)
        for dtype in ("float32", "bfloat16")
        for targets in arguments.targets
        for loaded in (8, 50)
    ]
    print(json.dumps({"cores": os.cpu_count(), "pictures": PICTURES, "rank": RANK, "figures": figures}, indent=1))


def measure(dtype: str, targets: str, loaded: int, rounds: int) -> dict[str, object]:
    """Return the seconds of a forward without and with adapters."""
    import torch

    from longcat.model.flavour import resolve
    from longcat.model.loading import load
    from longcat.sampling import latents
    from longcat.sampling.forward import Forward
    from longcat.sampling.slots import AdapterSlots

    model = load(resolve("embedded"), device="cpu", dtype=dtype)
    forward = Forward(model.transformer, model.device)
    adapters = [make_adapter(model.transformer, targets, number) for number in range(loaded)]
    rank = max(adapter.rank for adapter in adapters)
    slots = AdapterSlots(model.transformer, count=loaded, rank=rank, device=model.device, dtype=model.dtype)
    for slot, adapter in enumerate(adapters):
        slots.load(slot, adapter)
    rows, width = 2 * PICTURES, model.transformer.config.joint_attention_dim
    inputs = (
        latents.seeded_noise(seed=0, height_px=128, width_px=128).to(model.dtype).repeat(rows, 1, 1),
        forward.context(torch.randn(1, 32, width, dtype=model.dtype)).repeat(rows, 1, 1),
        torch.stack(forward.modulations(torch.arange(1, rows + 1).to(model.dtype) / 20)),
        forward.rope(height_px=128, width_px=128, prompt_rows=32),
    )
    uses = sorted((((loaded * (row // 2) // PICTURES, 1.0),) for row in range(rows)), key=slots.order)
    seconds, processor_seconds = interleave(
        {"none": lambda: forward(*inputs), "adapters": lambda: forward(*inputs, slots.gather(uses))}, rounds
    )
    times = (torch.arange(1, STEPS + 1) / STEPS).to(model.dtype)
    embeds = torch.randn(1, 32, width, dtype=model.dtype)

    def start_seconds(uses: tuple[tuple[int, float], ...]) -> float:
        fresh, updates = Forward(model.transformer, model.device), slots.conditioning(uses)
        begin = time.perf_counter()
        fresh.modulations(times, updates)
        for _ in range(2):  # the prompt and the negative prompt
            fresh.context(embeds, updates)
        return time.perf_counter() - begin

    starts = [(start_seconds(()), start_seconds(((0, 1.0),))) for _ in range(rounds)]
    return {
        "dtype": dtype,
        "targets": targets,
        "loaded": loaded,
        "none_ms": round(statistics.median(seconds["none"]) * 1000, 2),
        "adapters_ms": round(statistics.median(seconds["adapters"]) * 1000, 2),
        "ratio": ratio_of(seconds),
        "processor_ratio": ratio_of(processor_seconds),
        "start_ms": [round(statistics.median(kind) * 1000, 2) for kind in zip(*starts, strict=True)],
    }


def make_adapter(transformer: "nn.Module", targets: str, number: int) -> "LoraWeights":
    """Return a random adapter; ``number`` decides its kind where kinds are mixed."""
    from longcat.adapter.modules import linear_modules, lora_targets
    from longcat.adapter.weights.lora import LoraWeights

    kind = KINDS[number % len(KINDS)] if targets == "mixed-kinds" else "lora"
    names = (linear_modules if targets == "whole-transformer" else lora_targets)(transformer)
    layers = {
        name: make_layer(transformer.get_submodule(name), kind)
        for name in names
        if targets != "attention" or name.endswith(ATTENTION)
    }
    return LoraWeights(alpha=RANK, layers=layers)


def interleave(
    variants: dict[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Run the variants in turn; return the seconds of each run on the clock and of the processor, by variant."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    processor_seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(-3, rounds):  # three warm-up runs
        for name, run in variants.items():
            begin, processor_begin = time.perf_counter(), time.process_time()
            run()
            if i >= 0:
                seconds[name].append(time.perf_counter() - begin)
                processor_seconds[name].append(time.process_time() - processor_begin)
    return seconds, processor_seconds


def ratio_of(seconds: dict[str, list[float]]) -> float:
    """Return the median over pairs of the time with adapters, divided by that without."""
    return round(statistics.median(b / a for a, b in zip(seconds["none"], seconds["adapters"], strict=True)), 3)


def make_layer(module: "nn.Module", kind: str) -> "Layer":
    """Return a random layer of that kind for a linear module."""
    import torch

    from longcat.adapter.weights.dora import plain_weight
    from longcat.adapter.weights.lora import LoraLayer
    from longcat.adapter.weights.lycoris import LohaLayer, LokrLayer

    weight = plain_weight(module)
    width_out, width_in = weight.shape
    match kind:
        case "lokr":
            left = torch.randn(LOKR_FACTOR, LOKR_FACTOR) / LOKR_FACTOR
            return LokrLayer((left,), (torch.randn(width_out // LOKR_FACTOR, width_in // LOKR_FACTOR) * 0.02,))
        case "loha":
            up, up2 = (torch.randn(width_out, LOHA_RANK) for _ in range(2))
            return LohaLayer(up, torch.randn(LOHA_RANK, width_in), up2, torch.randn(LOHA_RANK, width_in) * 0.02)
    magnitude = weight.norm(dim=1) if kind == "dora" else None
    return LoraLayer(torch.randn(RANK, width_in) / width_in**0.5, torch.randn(width_out, RANK) * 0.05, magnitude)


if __name__ == "__main__":
    main()
