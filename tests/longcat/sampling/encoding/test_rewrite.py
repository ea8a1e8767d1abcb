import pytest
from diffusers import LongCatImagePipeline

from longcat.model.loading import Components
from longcat.model.tokenizer import plain_ids
from longcat.sampling.encoding.rewrite import rewrite_prompt
from longcat.sampling.prompt import tokenize_body


@pytest.mark.heavy
@pytest.mark.parametrize("prompt", ["a red apple", "一个红苹果"])
def test_rewriting_writes_what_diffusers_writes_within_the_model_s_length(model: Components, prompt: str) -> None:
    # The embedded text encoder was never trained to write, so the words are meaningless, but the code path is the real one.
    ours = rewrite_prompt(model.text_encoder, model.tokenizer, prompt, max_tokens=32, device=model.device)
    pipeline = LongCatImagePipeline(
        scheduler=None, vae=None, transformer=None, text_encoder=model.text_encoder,
        tokenizer=model.tokenizer, text_processor=model.tokenizer,
    )  # fmt: skip
    pipeline.tokenizer_max_length = 32
    theirs = pipeline.rewire_prompt(prompt, "cpu")[0]
    assert theirs.startswith(ours)
    assert 0 < len(tokenize_body(ours, plain_ids(model.tokenizer))) <= 32
