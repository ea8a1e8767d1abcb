"""The strength of an adapter in training: every kind of adapter scales as in the service, and is restored afterwards."""

import copy
from typing import Any

import pytest
import torch

from longcat.model.loading import Components
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.loop.evaluation.held_out_loss import at_strength
from trainer.model.lora import LoraSettings, inject

LAYER = "transformer_blocks.0.attn.to_q"
BLOCKS = {"apply_preset": {"target_module": ["LongCatImageAttention"]}}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"lora_rank": 2},
    "LoKr": {"lora_type": "lycoris", "lycoris_config": {"algo": "lokr", "linear_dim": 4, "factor": 8} | BLOCKS},
    "LoHa": {"lora_type": "lycoris", "lycoris_config": {"algo": "loha", "linear_dim": 2} | BLOCKS},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_an_update_is_proportional_to_the_strength(model: Components, options: dict[str, Any]) -> None:
    transformer = copy.deepcopy(model.transformer)
    parameters = inject(transformer, select(TrainConfig.model_validate(options), LoraSettings))
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    transformer.eval()
    layer = transformer.get_submodule(LAYER)
    x = torch.randn(3, layer.base_layer.in_features, generator=torch.Generator().manual_seed(2))
    base, whole = layer.base_layer(x), layer(x)
    assert (whole - base).abs().max() > 1e-4
    for strength in (0.0, 0.5, 1.25):
        with at_strength(transformer, strength):
            assert torch.allclose(layer(x), base + strength * (whole - base), rtol=1e-4, atol=1e-5), strength
    assert torch.equal(layer(x), whole)
