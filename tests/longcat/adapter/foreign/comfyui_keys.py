"""The mapping of a LoRA file's keys onto ComfyUI's LongCat-Image, from its source as of December 2025:

- ``comfy/model_base.py``: ``class LongCatImage(Flux)``, so that Flux' mappings apply.
- ``comfy/lora.py``, ``model_lora_keys_unet``: for a Flux, ``transformer.<diffusers' module>`` is a key.
- ``comfy/utils.py``, ``flux_to_diffusers``: the own weight, and the rows of it, for each key.
- ``comfy/weight_adapter/lora.py``: for a key, ``.lora_B.weight`` times ``.lora_A.weight``, times ``.alpha`` by A's rows if
  it is there; without, times 1. Other keys are ignored with a warning.
"""

from collections.abc import Iterator

DOUBLE = {
    "attn.to_q": ("img_attn.qkv", 0, 1),
    "attn.to_k": ("img_attn.qkv", 1, 1),
    "attn.to_v": ("img_attn.qkv", 2, 1),
    "attn.add_q_proj": ("txt_attn.qkv", 0, 1),
    "attn.add_k_proj": ("txt_attn.qkv", 1, 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2, 1),
    "attn.to_out.0": ("img_attn.proj", 0, 1),
    "attn.to_add_out": ("txt_attn.proj", 0, 1),
    "ff.net.0.proj": ("img_mlp.0", 0, 4),
    "ff.net.2": ("img_mlp.2", 0, 1),
    "ff_context.net.0.proj": ("txt_mlp.0", 0, 4),
    "ff_context.net.2": ("txt_mlp.2", 0, 1),
}
"""ComfyUI's own module by ours, with the first of its rows and their number, in hidden sizes."""
DOUBLE_MODULATIONS = {"norm1.linear": ("img_mod.lin", 0, 6), "norm1_context.linear": ("txt_mod.lin", 0, 6)}
SINGLE = {
    "attn.to_q": ("linear1", 0, 1),
    "attn.to_k": ("linear1", 1, 1),
    "attn.to_v": ("linear1", 2, 1),
    "proj_mlp": ("linear1", 3, 4),
    "proj_out": ("linear2", 0, 1),
}
SINGLE_MODULATIONS = {"norm.linear": ("modulation.lin", 0, 3)}
BESIDE = {
    "x_embedder": ("img_in", 0, 1),
    "context_embedder": ("txt_in", 0, 1),
    "time_text_embed.timestep_embedder.linear_1": ("time_in.in_layer", 0, 1),
    "time_text_embed.timestep_embedder.linear_2": ("time_in.out_layer", 0, 1),
    "norm_out.linear": ("final_layer.adaLN_modulation.1", 0, 2),
    "proj_out": ("final_layer.linear", 0, 0.25),
}
"""Layers beside the blocks. ComfyUI exchanges the halves of ``adaLN_modulation`` (``swap_scale_shift``)."""


def comfyui_keys(*, double: int, single: int, beside: bool = False) -> Iterator[tuple[str, tuple[str, int, float]]]:
    """Return the mapping of every key of a model with so many blocks, without its ending.

    ``beside``: also the keys of modulations, embedders and the output layer.
    """
    if beside:
        for module, (weight, first, rows) in BESIDE.items():
            yield f"transformer.{module}", (f"diffusion_model.{weight}.weight", first, rows)
    for theirs, ours, table, blocks in (
        ("double_blocks", "transformer_blocks", DOUBLE | (DOUBLE_MODULATIONS if beside else {}), double),
        ("single_blocks", "single_transformer_blocks", SINGLE | (SINGLE_MODULATIONS if beside else {}), single),
    ):
        for block in range(blocks):
            for module, (weight, first, rows) in table.items():
                own = f"diffusion_model.{theirs}.{block}.{weight}.weight"
                yield f"transformer.{ours}.{block}.{module}", (own, first, rows)
