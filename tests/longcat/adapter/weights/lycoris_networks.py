"""Networks of the ``lycoris-lora`` package with random weights, of every kind that is served."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lycoris import LycorisNetwork, create_lycoris
from safetensors.torch import save_file
from torch import nn

from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import linear_modules
from longcat.adapter.weights.lora import LoraWeights
from longcat.model.loading import Components

TOLERANCE = 1e-5
"""Between the velocities of the package and ours."""
PRESET: dict[str, Any] = {
    "target_module": ["LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock"],
    "target_name": [], "module_algo_map": {}, "name_algo_map": {}, "exclude_name": [r".*norm"],
}  # fmt: skip
WHOLE = ["LongCatImageTransformer2DModel"]
"""Also modulations, embedders and the output layer."""
KINDS: Mapping[str, dict[str, Any]] = {
    "lokr whole": {"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 4},
    "lokr full_matrix": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "factor": 16, "full_matrix": True},
    "lokr low rank": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "factor": 8},
    "lokr both low": {"algo": "lokr", "linear_dim": 3, "linear_alpha": 6, "factor": 16, "decompose_both": True},
    "lokr unbalanced": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 4, "factor": 8, "unbalanced_factorization": True},
    "lokr square": {"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": -1},
    "loha": {"algo": "loha", "linear_dim": 4, "linear_alpha": 2},
    "mixed": {
        "algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 16,
        "module_algo_map": {"FeedForward": {"algo": "loha", "dim": 3, "alpha": 6}},
    },
    "lokr everywhere": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "factor": 8, "target_module": WHOLE},
    "loha everywhere": {"algo": "loha", "linear_dim": 4, "linear_alpha": 2, "target_module": WHOLE},
}  # fmt: skip


def create(
    transformer: nn.Module,
    *,
    module_algo_map: Mapping[str, Any] | None = None,
    target_module: Sequence[str] | None = None,
    **config: Any,
) -> LycorisNetwork:
    """Create a network of the real package on a transformer as SimpleTuner does: the preset is a class attribute."""
    preset = PRESET if target_module is None else {**PRESET, "target_module": target_module, "exclude_name": []}
    LycorisNetwork.apply_preset({**preset, "module_algo_map": dict(module_algo_map or {})})
    network = create_lycoris(transformer, 1.0, **config)
    network.apply_to()
    return network


def randomized(network: LycorisNetwork, seed: int) -> LycorisNetwork:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if name.endswith("w1_b"):
                parameter.mul_(0.3)
            elif name.endswith(("w2", "w2_b")):
                parameter.mul_(0.02)
    return network


def random_lycoris(model: Components, kind: str, *, seed: int) -> LoraWeights:
    """Return an adapter of a kind in ``KINDS``, made by the real package and read from its file."""
    network = randomized(create(copy.deepcopy(model.transformer), **KINDS[kind]), seed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lycoris.safetensors")
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
        return read_foreign(file, linear_modules(model.transformer)).weights
