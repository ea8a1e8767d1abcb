"""The shortened forward pass of training has the predictions and gradients of diffusers'."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import LongCatImageTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from longcat.adapter.modules import linear_modules
from longcat.model.loading import Components
from longcat.model.shape import image_tokens
from longcat.sampling import latents
from trainer.config.targets import lora_targets
from trainer.model import low_rank
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.forward import slim
from trainer.model.low_rank import LowRankLinear

SIDE_PX, PROMPT_ROWS = 128, 24


def predict(transformer: LongCatImageTransformer2DModel) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    predicted: Tensor = transformer(
        hidden_states=torch.randn(2, image_tokens(width_px=SIDE_PX, height_px=SIDE_PX), 64, generator=generator),
        encoder_hidden_states=torch.randn(2, PROMPT_ROWS, transformer.config.joint_attention_dim, generator=generator),
        timestep=torch.tensor([0.3, 0.8]),
        txt_ids=latents.text_ids(PROMPT_ROWS),
        img_ids=latents.image_ids(height_px=SIDE_PX, width_px=SIDE_PX, max_tokens=PROMPT_ROWS),
        return_dict=False,
    )[0]
    return predicted


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_predictions_and_gradients_are_those_of_diffusers(model: Components, targets: str, checkpointed: bool) -> None:
    seen = []
    for slimmed in (False, True):
        transformer = copy.deepcopy(model.transformer)
        transformer.add_adapter(
            LoraConfig(r=4, lora_alpha=4, target_modules=lora_targets(linear_modules(transformer), targets))
        )
        parameters = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
        for name, parameter in parameters.items():
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
        if slimmed:
            slim(transformer)
        if checkpointed:
            checkpoint_blocks(transformer, every=1)
        predicted = predict(transformer.train())
        predicted.square().mean().backward()
        seen.append((predicted.detach(), {name: p.grad for name, p in parameters.items()}))
    (expected, gradients), (predicted, slim_gradients) = seen
    torch.testing.assert_close(predicted, expected, rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(slim_gradients[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


def test_less_is_kept_for_the_backward_pass(model: Components) -> None:
    kept = []
    for slimmed in (False, True):
        transformer = copy.deepcopy(model.transformer)
        transformer.add_adapter(LoraConfig(r=4, target_modules=lora_targets(linear_modules(transformer), "attention")))
        if slimmed:
            slim(transformer)
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            held = predict(transformer.train())
        kept.append(sum(sizes.values()))
        assert held.requires_grad
    assert kept[1] < kept[0]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_dropout_is_the_same_forward_and_backward(share: float) -> None:
    """Compare with autograd under the same mask, which the seed reproduces."""
    torch.manual_seed(0)
    lora_config = LoraConfig(r=4, lora_alpha=8, lora_dropout=share, target_modules=["0"])
    layer: Any = inject_adapter_in_model(lora_config, nn.Sequential(nn.Linear(48, 32)))[0]
    layer.__class__, base = LowRankLinear, layer.base_layer
    layer.lora_B["default"].weight.data.normal_()
    x = torch.randn(2, 500, 48)
    trained = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    seen = []
    for is_ours in (True, False):
        given = x.clone().requires_grad_()
        torch.manual_seed(5)
        if is_ours:
            result = layer.train()(given)
        else:
            kept = low_rank._kept(x.numel(), round(share * 2**16), x.device).view(x.shape)
            assert abs(float(kept.float().mean()) - (1 - share)) < 0.01
            result = base(given) + F.linear(F.linear(given * kept / (1 - share), trained[0]), trained[1]) * 2
        seen.append((result, *torch.autograd.grad(result.square().mean(), [given, *trained])))
    for ours, expected in zip(*seen, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(layer.eval()(x), layer(x))
    layer.enable_adapters(False)
    assert torch.equal(layer(x), base(x))
