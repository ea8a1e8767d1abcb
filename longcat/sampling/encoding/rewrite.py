"""Prompt rewriting by the model's own text encoder, as in diffusers' ``LongCatImagePipeline.rewire_prompt``."""

import re

import torch
from diffusers.pipelines.longcat_image.system_messages import SYSTEM_PROMPT_EN, SYSTEM_PROMPT_ZH
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from longcat.model.offload import on_device
from longcat.model.tokenizer import plain_ids
from longcat.sampling.prompt import tokenize_body

_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@torch.no_grad()
def rewrite_prompt(
    text_encoder: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    prompt: str,
    *,
    max_tokens: int,
    device: torch.device,
) -> str:
    """Rewrite a prompt in its own language with more detail, in at most ``max_tokens`` tokens, on ``device``.

    Decoding is greedy, so that a prompt is always rewritten in the same way. One thread at a time may call it: the language
    head is on the device for as long as it takes.
    """
    if _CHINESE.search(prompt):
        question = f"{SYSTEM_PROMPT_ZH}\n用户输入为：{prompt}\n改写后的prompt为："
    else:
        question = f"{SYSTEM_PROMPT_EN}\nUser Input: {prompt}\nRewritten prompt:"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": question}]}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt").to(device)
    # transformers asks the weights for their device: offloaded ones are there only after a call (``longcat.model.offload``).
    text_encoder.get_input_embeddings()(inputs["input_ids"])
    with on_device(text_encoder.lm_head, device):
        generated = text_encoder.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
        )
    written = generated[0, inputs["input_ids"].shape[1] :]
    rewritten = _decode(tokenizer, written)
    # Decoded text may tokenise to more tokens than were generated: drop from the end until it fits.
    while len(tokenize_body(rewritten, plain_ids(tokenizer))) > max_tokens:
        written = written[:-1]
        rewritten = _decode(tokenizer, written)
    return rewritten


def _decode(tokenizer: Qwen2Tokenizer, ids: torch.Tensor) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
