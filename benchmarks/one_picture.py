"""Time of one picture at default settings, without loading: wall seconds by phase, median and maximum of many.

Run it with ``make bench``. It measures the work of ``POST /generate`` without HTTP.
"""

import argparse
import json
import os
import statistics
import time

from longcat.logs import silence_import_noise
from longcat.model.flavour import resolve
from longcat.model.tokenizer import load_tokenizer, plain_ids
from service.config import ModelConfig
from service.wire.limits import Limits
from service.wire.schema import GenerateRequest

PROMPTS = ("一个红苹果", "a red apple", "一只猫，蓝色背景", "a rocket on a black background")


def main() -> None:
    """Generate, and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flavour", default="embedded")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--precision", default="no_change")
    parser.add_argument("--pictures", type=int, default=20)
    arguments = parser.parse_args()
    silence_import_noise()
    from service.renderer import Renderer  # imports torch, after the noise is silenced

    flavour = resolve(arguments.flavour)
    limits, tokenize = Limits.of_model(flavour), plain_ids(load_tokenizer(flavour.folder))
    config = ModelConfig(flavour=arguments.flavour, dtype=arguments.dtype, precision=arguments.precision)
    renderer = Renderer(config, flavour, max_rows=8)
    seconds: dict[str, list[float]] = {"total": []}
    for i in range(-2, arguments.pictures):  # two warm-up runs
        request = limits.resolve(GenerateRequest(prompt=PROMPTS[i % len(PROMPTS)], seed=i + 2), tokenize)
        begin = time.monotonic()
        timings = renderer.render(request).timings
        if i >= 0:
            seconds["total"].append(time.monotonic() - begin)
            for phase, value in timings.model_dump(exclude={"queue_seconds"}).items():
                seconds.setdefault(phase.removesuffix("_seconds"), []).append(value)
    report = {
        "flavour": flavour.name,
        "size_px": flavour.settings.default_size_px,
        "steps": flavour.settings.default_steps,
        "dtype": str(renderer.model.dtype).removeprefix("torch."),
        "precision": arguments.precision,
        "cores": os.cpu_count(),
        "pictures": arguments.pictures,
        "seconds": {
            phase: {"median": round(statistics.median(values), 4), "worst": round(max(values), 4)}
            for phase, values in seconds.items()
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
