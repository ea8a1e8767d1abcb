import pytest
import torch
from diffusers import LongCatImagePipeline
from torch import Tensor

from longcat.model.loading import Components
from longcat.model.tokenizer import plain_ids
from longcat.sampling.encoding.text_encoder import encode_prompt, position_ids
from longcat.sampling.prompt import TEMPLATE_PREFIX, TEMPLATE_SUFFIX, tokenize_body, tokenize_prompt

PROMPTS = ["", "a red apple", "一个红苹果，蓝色背景", "it's a sign: 'open'", "猫" * 32]
# Both sides compute the same sums in float32, over sequences of different lengths.
TOLERANCE = 2e-5


def encode(model: Components, prompt: str) -> Tensor:
    limit = model.flavour.settings.max_prompt_tokens
    tokens = tokenize_prompt(prompt, plain_ids(model.tokenizer), max_tokens=limit)
    return encode_prompt(
        model.text_encoder, tokens, pad_token_id=model.tokenizer.pad_token_id, max_tokens=limit, device=model.device
    )


def full_length(model: Components, prompt: str) -> tuple[Tensor, Tensor, int]:
    """Return ids and mask of the whole padded template, as in the published pipeline, and the body's length."""
    tokenize, limit = plain_ids(model.tokenizer), model.flavour.settings.max_prompt_tokens
    prefix, body, suffix = tokenize(TEMPLATE_PREFIX), tokenize_body(prompt, tokenize), tokenize(TEMPLATE_SUFFIX)
    pads = limit - len(body)
    ids = prefix + body + [model.tokenizer.pad_token_id] * pads + suffix
    mask = [1] * (len(prefix) + len(body)) + [0] * pads + [1] * len(suffix)
    return torch.tensor([ids]), torch.tensor([mask]), len(body)


@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_embeddings_equal_the_whole_template_with_transformers_4_positions(model: Components, prompt: str) -> None:
    ids, mask, _ = full_length(model, prompt)
    positions = torch.where(mask == 1, mask.cumsum(-1) - 1, 1)
    output = model.text_encoder(
        input_ids=ids, attention_mask=mask, position_ids=positions.expand(3, 1, -1), output_hidden_states=True
    )
    suffix = len(plain_ids(model.tokenizer)(TEMPLATE_SUFFIX))
    expected = output.hidden_states[-1][:, -32 - suffix : -suffix]
    actual = encode(model, prompt)
    assert actual.shape == (1, 32, 256)
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_prompt_rows_equal_diffusers_and_pad_rows_are_one_row(model: Components) -> None:
    pipeline = LongCatImagePipeline.from_pretrained(model.flavour.folder, dtype=torch.float32)
    pipeline.tokenizer_max_length = 32
    theirs, _ = pipeline.encode_prompt(["a red apple"])
    ours = encode(model, "a red apple")
    torch.testing.assert_close(ours[:, :3], theirs[:, :3], rtol=0, atol=TOLERANCE)
    assert torch.equal(ours[:, 3:], ours[:, 3:4].expand(-1, 29, -1))
    # Under transformers 5, diffusers numbers pads 38, 39, ...; in training, pads were at 1.
    assert (ours[:, 3:] - theirs[:, 3:]).abs().max() > 0.1


def test_positions_count_real_tokens_and_put_pads_at_one() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1]])
    assert position_ids(mask).tolist() == [[[0, 1, 2, 1, 1, 3, 4]]] * 3
