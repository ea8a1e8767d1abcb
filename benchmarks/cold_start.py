"""Time and peak memory of starts that quantize, and of starts that read what an earlier one quantized.

Half a billion random parameters in bfloat16, half of them the text encoder's, on a CPU. Each start is a process of
its own. Its time is that of ``load``, without the imports. Its memory is that which the system cannot take back
(``RssAnon``): pages of the model's files are not part of it.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PRECISION = "int8-torchao"
_SAMPLE_SECONDS = 0.005
_TRANSFORMER = {
    "num_layers": 2, "num_single_layers": 5, "num_attention_heads": 20, "attention_head_dim": 64,
    "joint_attention_dim": 1280,
}  # fmt: skip
_TEXT = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 10, "num_attention_heads": 20,
    "num_key_value_heads": 20, "vocab_size": 16384, "layer_types": ["full_attention"] * 10,
}  # fmt: skip


def main() -> None:
    """Run the benchmark, or one start of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="of the computation"
    )
    parser.add_argument("--start", nargs=2, metavar=("MODEL", "QUANTIZED"), help="one start, in this process")
    arguments = parser.parse_args()
    if arguments.start:
        print(json.dumps(_start(*arguments.start, dtype=arguments.dtype)))
        return
    with tempfile.TemporaryDirectory() as name:
        _measure(Path(name), arguments.rounds, arguments.dtype)


def _measure(folder: Path, rounds: int, dtype: str) -> None:
    model, kept = folder / "model", folder / "quantized"
    size = _write_model(model)
    results: dict[str, list[dict[str, float]]] = {"quantizing": [], "first": [], "second": []}
    _run(model, "none", dtype)  # fills the page cache
    for _ in range(rounds):
        shutil.rmtree(kept, ignore_errors=True)
        results["quantizing"].append(_run(model, "none", dtype))
        results["first"].append(_run(model, str(kept), dtype))
        results["second"].append(_run(model, str(kept), dtype))
    print(f"{size:,} parameters, {_PRECISION}, computed in {dtype}")
    base = results["quantizing"]
    for name, found in results.items():
        ratios = [one["seconds"] / other["seconds"] for one, other in zip(found, base, strict=True)]
        seconds, peak = (statistics.median(one[key] for one in found) for key in ("seconds", "peak_mib"))
        print(
            f"{name:12} {statistics.median(ratios):5.2f} of quantizing, {seconds:6.2f} s, loading adds {peak:6.0f} MiB"
        )


def _run(model: Path, kept: str, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.cold_start", "--dtype", dtype, "--start", str(model), kept]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def _start(model: str, kept: str, *, dtype: str) -> dict[str, float]:
    from longcat.model.flavour import resolve
    from longcat.model.loading import load
    from longcat.model.precision import Precision

    load(resolve("embedded"), device="cpu", precision=Precision(_PRECISION))  # imports, and memory of libraries
    flavour = resolve(model)
    with _peak_memory() as peak:
        before, begin = _anonymous_mib(), time.perf_counter()
        load(
            flavour,
            device="cpu",
            dtype=dtype,
            precision=Precision(_PRECISION),
            text_encoder_precision=Precision(_PRECISION),
            quantized_folder=None if kept == "none" else Path(kept),
        )
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak_mib": max(peak) - before}


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """Sample the memory of this process every few milliseconds; the kernel keeps no peak of this kind."""
    found, is_over = [0.0], threading.Event()

    def sample() -> None:
        while not is_over.wait(_SAMPLE_SECONDS):
            found.append(_anonymous_mib())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def _anonymous_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) / 1024


def _write_model(folder: Path) -> int:
    """Write a model with random weights, and return the number of its parameters that are loaded."""
    import torch
    from diffusers import LongCatImageTransformer2DModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    from longcat.model.flavour import EMBEDDED_FOLDER

    shutil.copytree(EMBEDDED_FOLDER, folder)
    config = LongCatImageTransformer2DModel.load_config(folder, subfolder="transformer")
    transformer = LongCatImageTransformer2DModel.from_config({**config, **_TRANSFORMER}).to(torch.bfloat16)
    small = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, subfolder="text_encoder")
    written = small.config.to_dict()
    written["text_config"] |= _TEXT
    written["vision_config"]["out_hidden_size"] = _TEXT["hidden_size"]
    text_encoder = Qwen2_5_VLForConditionalGeneration(type(small.config)(**written)).to(torch.bfloat16)
    for part, model in (("transformer", transformer), ("text_encoder", text_encoder)):
        shutil.rmtree(folder / part)
        model.save_pretrained(folder / part, max_shard_size="500MB")
    return sum(parameter.numel() for model in (transformer, text_encoder) for parameter in model.parameters())


if __name__ == "__main__":
    main()
