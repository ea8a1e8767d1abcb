"""Prior preservation: the target is the prediction of the same weights, with the adapter off."""

import copy

import pytest
import torch
from diffusers import LongCatImageTransformer2DModel

from longcat.model.loading import Components
from longcat.model.shape import image_tokens
from longcat.sampling import latents
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.loop.step import Batch, loss_of, with_prior
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject

SIDE_PX, ROWS = 128, 24


def batch(transformer: LongCatImageTransformer2DModel, *, is_prior: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(4)
    tokens = image_tokens(width_px=SIDE_PX, height_px=SIDE_PX)
    return Batch(
        noisy_BNC=torch.randn(2, tokens, 64, generator=generator),
        target_BNC=torch.randn(2, tokens, 64, generator=generator),
        sigma_B=torch.tensor([0.3, 0.8]),
        embeds_BLJ=torch.randn(2, ROWS, transformer.config.joint_attention_dim, generator=generator),
        text_ids_L3=latents.text_ids(ROWS),
        image_ids_N3=latents.image_ids(height_px=SIDE_PX, width_px=SIDE_PX, max_tokens=ROWS),
        seed=1,
        is_prior=is_prior,
    )


def adapted(model: Components, **options: object) -> tuple[LongCatImageTransformer2DModel, list[torch.nn.Parameter]]:
    transformer = copy.deepcopy(model.transformer)
    config = TrainConfig.model_validate({"model_flavour": "embedded", "lora_rank": 4, **options})
    parameters = inject(transformer, select(config, LoraSettings))
    return transformer.train(), parameters


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_the_target_is_the_prediction_of_the_base_alone(model: Components, options: dict[str, object]) -> None:
    transformer, parameters = adapted(model, **options)
    given = batch(transformer)
    with torch.no_grad():
        expected = model.transformer(
            hidden_states=given.noisy_BNC, timestep=given.sigma_B, encoder_hidden_states=given.embeds_BLJ,
            txt_ids=given.text_ids_L3, img_ids=given.image_ids_N3, return_dict=False,
        )[0]  # fmt: skip
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    checkpoint_blocks(transformer, every=1)
    made = with_prior(transformer, given)
    torch.testing.assert_close(made.target_BNC, expected, rtol=1e-5, atol=1e-5)
    assert not made.target_BNC.requires_grad
    assert transformer.training
    loss = loss_of(transformer, made)
    loss.backward()
    assert loss > 1e-4  # the adapter is on again, and the loss measures its change
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in parameters)


def test_an_adapter_that_changes_nothing_has_no_loss(model: Components) -> None:
    transformer, _ = adapted(model)
    made = with_prior(transformer, batch(transformer))
    assert loss_of(transformer, made) < 1e-10


def test_other_batches_keep_their_target(model: Components) -> None:
    transformer, _ = adapted(model)
    given = batch(transformer, is_prior=False)
    assert with_prior(transformer, given) is given
