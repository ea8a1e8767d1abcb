"""Random LoRA adapters for the embedded model: distinct, strong enough to change pictures, weak enough to stay finite.

``python -m loadtest.traffic.adapters FOLDER --count 8`` writes ``style-0.safetensors`` and so on in diffusers' format, with
rank and alpha in the header. ``--storage`` also publishes them with ``lithograph adapters import``.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from loadtest.servers import EMBEDDED, ROOT

Targets = Literal["attention", "all-linear"]

RANK = 16
STRENGTH = 0.5
"""Standard deviation of an update's entries times the square root of the layer's width: 1 is the size of a fresh layer."""

_LAYER = re.compile(r"^(?P<module>(?:single_)?transformer_blocks\..+)\.weight$")
_ATTENTION = (".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0")
"""Modules that SimpleTuner trains."""


class PublishError(Exception):
    """An import that failed; the message is the command's."""


def make_adapter(
    path: Path, *, seed: int, targets: Targets = "attention", rank: int = RANK, strength: float = STRENGTH
) -> None:
    """Write one adapter with alpha = rank, determined by its seed."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    modules = sorted(_modules(targets))
    if not modules:
        raise FileNotFoundError(f"no transformer layers in {EMBEDDED}: run from a whole checkout")
    for module, width_out, width_in in modules:
        down = random.standard_normal((rank, width_in)) / np.sqrt(width_in)
        up = random.standard_normal((width_out, rank)) * strength / np.sqrt(rank)
        tensors[f"transformer.{module}.lora_A.weight"] = down.astype(np.float32)
        tensors[f"transformer.{module}.lora_B.weight"] = up.astype(np.float32)
    config = {"r": rank, "lora_alpha": rank, "target_modules": [module for module, _, _ in modules]}
    header = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    save_file(tensors, path, metadata={"format": "pt", "lora_adapter_metadata": header})


def make_adapters(
    folder: Path, count: int, *, first_seed: int = 0, targets: Targets = "attention", rank: int = RANK
) -> dict[str, Path]:
    """Write ``count`` adapters into a folder; return the files by name, which is the file's without its ending."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"style-{i}": folder / f"style-{i}.safetensors" for i in range(count)}
    for i, file in enumerate(files.values()):
        make_adapter(file, seed=first_seed + i, targets=targets, rank=rank)
    return files


def import_command(file: Path, name: str, *, storage: str, endpoint_url: str | None = None) -> list[str]:
    """Return the command that publishes a file as a new version and makes it the latest."""
    endpoint = [] if endpoint_url is None else ["--endpoint-url", endpoint_url]
    return [
        *(sys.executable, "-m", "lithograph", "adapters", "import", str(file)),
        *("--name", name, "--storage", storage, *endpoint),
    ]


def publish(files: Mapping[str, Path], *, storage: str, endpoint_url: str | None = None) -> None:
    """Publish every file under its name, as many at once as there are cores. Raises ``PublishError``."""

    def publish_one(name: str) -> None:
        command = import_command(files[name], name, storage=storage, endpoint_url=endpoint_url)
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise PublishError(f"publishing {name} failed: {finished.stderr.strip()}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(publish_one, files))


def _modules(targets: Targets) -> Iterator[tuple[str, int, int]]:
    """Return names and widths (out, in) of the layers that an adapter changes, which exclude modulations."""
    for shard in sorted((EMBEDDED / "transformer").glob("*.safetensors")):
        with safe_open(shard, framework="numpy") as stream:
            keys = stream.keys()
            for key in keys:
                match = _LAYER.match(key)
                shape = stream.get_slice(key).get_shape()
                if match is None or len(shape) != 2 or ".norm" in key:
                    continue
                if targets == "all-linear" or match["module"].endswith(_ATTENTION):
                    yield match["module"], shape[0], shape[1]


def main() -> None:
    """Make adapters; publish them if a storage is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--targets", choices=("attention", "all-linear"), default="attention")
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--storage", help="file:///... or s3://bucket/prefix")
    parser.add_argument("--endpoint-url", help="endpoint of an S3 store other than AWS")
    arguments = parser.parse_args()
    files = make_adapters(
        arguments.folder,
        arguments.count,
        first_seed=arguments.first_seed,
        targets=arguments.targets,
        rank=arguments.rank,
    )
    if arguments.storage:
        publish(files, storage=arguments.storage, endpoint_url=arguments.endpoint_url)


if __name__ == "__main__":
    main()
