"""Time of one picture at default settings, without loading: wall seconds by phase, median and maximum of many.

Run it with ``make bench``. It measures the work of ``POST /generate`` without HTTP. With ``--c2pa-certificate`` and
``--c2pa-key``, it measures only the files: processor milliseconds to encode one of 1024 x 1024 px, and for its metadata.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import get_args

import numpy as np

from longcat.logs import silence_import_noise
from longcat.model.flavour import resolve
from longcat.model.tokenizer import load_tokenizer, plain_ids
from service.config import ModelConfig
from service.wire.limits import Limits
from service.wire.picture import ModelIdentity, PictureWriter
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import GenerateRequest, OutputFormat, ResolvedRequest

_SIDE_PX = 1024
PROMPTS = ("一个红苹果", "a red apple", "一只猫，蓝色背景", "a rocket on a black background")


def main() -> None:
    """Generate, and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flavour", default="embedded")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--precision", default="no_change")
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--c2pa-certificate", type=Path)
    parser.add_argument("--c2pa-key", type=Path)
    arguments = parser.parse_args()
    if arguments.c2pa_certificate is not None:
        signed = ProvenanceConfig(c2pa_certificate=arguments.c2pa_certificate, c2pa_key=arguments.c2pa_key)
        print(json.dumps(_files(signed, arguments.pictures), indent=1))
        return
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


def _files(signed: ProvenanceConfig, pictures: int) -> dict[str, dict[str, float]]:
    """Return, by format, the median milliseconds of a file without metadata, and those that its kinds of metadata add."""
    model = ModelIdentity(
        flavour="final", revision=None, hash="0" * 64, precision="no_change", text_encoder_precision="no_change",
        dtype="bfloat16",
    )  # fmt: skip
    bare = ProvenanceConfig(picture_label="off", picture_recipe="off")
    writers = {"bare": PictureWriter(model, bare), "labelled": PictureWriter(model, ProvenanceConfig())}
    writers |= {
        "marked": PictureWriter(model, ProvenanceConfig(visible_mark="AI")),
        "signed": PictureWriter(model, signed),
    }
    coarse = np.random.default_rng(0).integers(0, 256, (_SIDE_PX // 16, _SIDE_PX // 16, 3), dtype=np.uint8)
    pixels = coarse.repeat(16, axis=0).repeat(16, axis=1)
    report = {}
    for output_format in get_args(OutputFormat):
        request = ResolvedRequest(
            prompt=PROMPTS[0], negative_prompt="", width=_SIDE_PX, height=_SIDE_PX, steps=50, guidance_scale=4.5, seed=0,
            num_images=1, cfg_renorm=True, rewrite_prompt=False, output_format=output_format,
        )  # fmt: skip
        taken: dict[str, list[float]] = {name: [] for name in writers}
        for _ in range(pictures):
            for name, writer in writers.items():
                begin = time.process_time()
                writer.file_of(pixels, request, 0, ())
                taken[name].append(1000 * (time.process_time() - begin))
        bare_ms, labelled_ms, marked_ms, signed_ms = map(np.array, taken.values())
        added = {
            "encoding_ms": bare_ms,
            "label_and_recipe_ms": labelled_ms - bare_ms,
            "visible_mark_ms": marked_ms - labelled_ms,
            "signature_ms": signed_ms - labelled_ms,
        }
        report[output_format] = {name: round(float(np.median(values)), 2) for name, values in added.items()}
    return report


if __name__ == "__main__":
    main()
