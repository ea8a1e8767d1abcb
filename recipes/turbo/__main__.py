"""Make the embedded model's turbo adapter: prompts, ``lithograph distill``, and the packaged artifact.

Interrupt it at any time: the training resumes from its last checkpoint. Run it with ``make turbo``.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from longcat.adapter.artifact import fetch, find
from longcat.adapter.manifest import Draft, Manifest, Training
from longcat.adapter.publishing import set_latest
from longcat.adapter.reference import parse_reference
from longcat.adapter.verification import load_version
from longcat.adapter.weights.draft import publish_lora
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.storage.opening import open_storage
from recipes.turbo.prompts import write_prompts

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build"
CONFIG = Path(__file__).parent / "config.json"
NAME = "turbo"


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("longcat/embedded/adapters"), help="adapter storage")
    arguments = parser.parse_args()
    prompts = BUILD / NAME / "prompts.txt"
    if not prompts.exists():
        write_prompts(BUILD / "embedded", prompts)
    published = BUILD / NAME / "adapters"
    options = [f"publish_to={published.as_uri()}", f"adapter_name={NAME}"]
    command = [sys.executable, "-P", "-m", "lithograph", "distill", "--config", str(CONFIG), *options]
    subprocess.run(command, cwd=ROOT, check=True)
    manifest = package(published, arguments.output.absolute())
    print(f"{manifest.reference}: {manifest.weights.size_bytes / 1e6:.1f} MB, {manifest.sampling}")


def package(source: Path, output: Path) -> Manifest:
    """Store the latest version in ``source`` as version 1 in ``output``, in bfloat16 and without validation pictures."""
    storage = open_storage(source.as_uri())
    trained = find(storage, parse_reference(NAME))
    weights = load_version(fetch(storage, trained, source.parent / "fetched"), trained)
    fields = {name: getattr(trained, name) for name in Draft.model_fields}
    fields |= {"validation_images": (), "training": _without_place(trained.training)}
    shutil.rmtree(output / NAME, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    packaged = open_storage(output.as_uri())
    manifest = publish_lora(packaged, NAME, Draft(**fields), _halved(weights))
    set_latest(packaged, NAME, manifest.version)
    return manifest


def _without_place(training: Training | None) -> Training:
    """Leave out the one option that differs from machine to machine."""
    assert training is not None
    config = {name: value for name, value in training.config.items() if name != "publish_to"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return training.model_copy(update={"config": config, "config_hash": digest})


def _halved(weights: LoraWeights) -> LoraWeights:
    layers = {}
    for name, layer in weights.layers.items():
        assert isinstance(layer, LoraLayer)
        layers[name] = LoraLayer(layer.down.to(torch.bfloat16), layer.up.to(torch.bfloat16))
    return LoraWeights(alpha=weights.alpha, layers=layers)


if __name__ == "__main__":
    main()
