import pytest
import torch
from diffusers import LongCatImageEditPipeline

from longcat.model.loading import Components
from longcat.model.tokenizer import plain_ids
from longcat.sampling.encoding.reference import ReferenceEncoder, half
from longcat.sampling.encoding.seen_picture import picture_positions, see
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.sampling.prompt import EDIT_TEMPLATE_PREFIX, TEMPLATE_SUFFIX, tokenize_body
from tests.edit_model import PROMPT_TOKENS, on_canvas, picture

PROMPTS = ["", "make the apple blue", "把苹果换成梨", "write 'open' on it", "猫" * 32]
SIZES = [(160, 160), (96, 300), (300, 96), (256, 100)]
# Both sides compute the same sums in float32, over sequences of different lengths.
TOLERANCE = 2e-5


def reference(size: tuple[int, int], seed: int = 0) -> SourcePicture:
    return on_canvas(picture(*size, seed=seed), area_px=192 * 192)


def whole_positions(model: Components, prompt: str, seen: SourcePicture) -> torch.Tensor:
    """Return the positions of transformers 4.57 over the whole padded template, as its ``get_rope_index`` makes them."""
    assert model.image_processor is not None
    grid = model.image_processor(images=[half(seen)], return_tensors="pt")["image_grid_thw"]
    tokenize = plain_ids(model.tokenizer)
    mark, tokens = model.text_encoder.config.image_token_id, int(grid.prod()) // 4
    prefix, body = tokenize(EDIT_TEMPLATE_PREFIX), tokenize_body(prompt, tokenize)
    first, pads = prefix.index(mark), PROMPT_TOKENS - len(body)
    ids = [*prefix[:first], *[mark] * tokens, *prefix[first + 1 :], *body, *[0] * pads, *tokenize(TEMPLATE_SUFFIX)]
    mask = torch.ones(1, len(ids), dtype=torch.long)
    end = len(prefix) - 1 + tokens + len(body)
    mask[:, end : end + pads] = 0
    # transformers 5's function, which is given the tokens' types, numbers real tokens as 4.57's does, and pads at 0.
    types = (torch.tensor([ids]) == mark).int()
    positions, _ = model.text_encoder.model.get_rope_index(
        torch.tensor([ids]), types, image_grid_thw=grid, attention_mask=mask
    )
    return positions.masked_fill(mask[None] == 0, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_conditioning_equals_the_published_pipeline_at_transformers_4_positions(
    edit_model: Components,
    edit_pipeline: LongCatImageEditPipeline,
    references: ReferenceEncoder,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    size: tuple[int, int],
) -> None:
    shown = reference(size)
    positions = whole_positions(edit_model, prompt, shown)
    forward = edit_model.text_encoder.forward
    monkeypatch.setattr(edit_model.text_encoder, "forward", lambda **inputs: forward(**inputs, position_ids=positions))
    expected, _ = edit_pipeline.encode_prompt([prompt], half(shown))
    monkeypatch.undo()
    actual = references.embed(prompt, shown)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_under_transformers_5_the_pipeline_numbers_the_picture_as_text(
    edit_pipeline: LongCatImageEditPipeline, references: ReferenceEncoder
) -> None:
    """The reason to pass positions: unlike rows before the picture's second token, later ones differ."""
    shown = reference((160, 160))
    theirs, _ = edit_pipeline.encode_prompt(["make the apple blue"], half(shown))
    ours = references.embed("make the apple blue", shown)
    torch.testing.assert_close(ours[:, :2], theirs[:, :2], rtol=0, atol=TOLERANCE)
    assert (ours[:, 2:] - theirs[:, 2:]).abs().amax(-1).min() > 100 * TOLERANCE


def test_positions_of_a_picture_have_rows_and_columns_and_pads_are_at_one() -> None:
    """Worked by hand: two tokens, a picture of 2 x 3, two tokens, one pad."""
    time, row, column = picture_positions(first=2, rows=2, columns=3, length=11, pads=1)[:, 0].tolist()
    assert time == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 1]
    assert row == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 1]
    assert column == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 1]


def test_the_picture_and_the_prompt_both_decide_the_embedding(references: ReferenceEncoder) -> None:
    red, other = reference((160, 160)), reference((160, 160), seed=1)
    base = references.embed("make it blue", red)
    for changed in (references.embed("make it blue", other), references.embed("make it green", red)):
        assert (base - changed).abs().max() > 0.01
    after_picture = base.shape[1] - PROMPT_TOKENS
    other_rows = references.embed("make it green", red)
    assert torch.equal(base[:, :after_picture], other_rows[:, :after_picture])  # causal: the picture comes first


def test_a_picture_is_seen_in_rows_and_columns_of_28_px(edit_model: Components) -> None:
    assert edit_model.image_processor is not None
    seen = see(edit_model.text_encoder, edit_model.image_processor, picture(140, 84), device=torch.device("cpu"))
    assert (seen.rows, seen.columns, seen.features_VJ.shape) == (3, 5, (15, 256))
