"""The transformer's constants against the transformer itself."""

import torch

from longcat.model import shape
from longcat.model.loading import Components
from longcat.sampling.forward import Forward


def test_constants_are_those_of_the_transformer(model: Components) -> None:
    transformer = model.transformer
    assert transformer.config.in_channels == shape.TOKEN_CHANNELS
    assert model.vae.config.latent_channels == shape.LATENT_CHANNELS
    assert 2 ** (len(model.vae.config.block_out_channels) - 1) == shape.LATENT_PX
    assert shape.TOKEN_PX == 16
    assert transformer.single_transformer_blocks[0].proj_mlp.out_features == shape.MLP_RATIO * transformer.inner_dim
    assert torch.finfo(torch.float16).max == shape.FLOAT16_MAX


def test_modulations_have_the_computed_number(model: Components) -> None:
    transformer = model.transformer
    modulation_M = Forward(transformer, model.device).modulations(torch.tensor([0.5]))[0]
    assert modulation_M.shape == (
        shape.modulation_numbers(
            double_blocks=len(transformer.transformer_blocks),
            single_blocks=len(transformer.single_transformer_blocks),
            width=transformer.inner_dim,
        ),
    )
