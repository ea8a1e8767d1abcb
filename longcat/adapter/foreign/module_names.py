"""The names of LongCat-Image's modules in other programs. No torch.

The names are those that Black Forest Labs gave to Flux' blocks; ComfyUI (``comfy/utils.py``, ``flux_to_diffusers``) and
kohya use them. Their attention is fused: rows of q, then k, then v, and in single blocks then the MLP's first layer. Their
output is modulated by shift, then scale; diffusers' by scale, then shift.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

_DOUBLE = MappingProxyType(
    {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "img_attn.proj": ("attn.to_out.0",),
        "txt_attn.proj": ("attn.to_add_out",),
        "img_mlp.0": ("ff.net.0.proj",),
        "img_mlp.2": ("ff.net.2",),
        "txt_mlp.0": ("ff_context.net.0.proj",),
        "txt_mlp.2": ("ff_context.net.2",),
        "img_mod.lin": ("norm1.linear",),
        "txt_mod.lin": ("norm1_context.linear",),
        "img_attn.norm.query_norm": ("attn.norm_q",),
        "img_attn.norm.key_norm": ("attn.norm_k",),
        "txt_attn.norm.query_norm": ("attn.norm_added_q",),
        "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    }
)
_SINGLE = MappingProxyType(
    {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear1_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "linear2": ("proj_out",),
        "modulation.lin": ("norm.linear",),
        "norm.query_norm": ("attn.norm_q",),
        "norm.key_norm": ("attn.norm_k",),
    }
)
_BESIDE_BLOCKS = MappingProxyType(
    {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_embed.timestep_embedder.linear_2",
        "time_text_embed.timestep_embedder.linear_1": "time_embed.timestep_embedder.linear_1",
        "time_text_embed.timestep_embedder.linear_2": "time_embed.timestep_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
)
"""Layers beside the blocks; ``time_text_embed`` is diffusers' name in its other Flux models."""
HALVES_SWAPPED = frozenset({"final_layer.adaLN_modulation.1", "final_layer_adaLN_modulation_1"})
"""Names of layers whose rows are those of the module with the first and the second half exchanged."""


_BLOCKS = (
    ("double_blocks", "transformer_blocks", _DOUBLE),
    ("single_blocks", "single_transformer_blocks", _SINGLE),
)


def module_names(modules: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Map every name of these modules to one module, or to several in the order of their fused rows.

    Names have dots or underscores. Names with underscores cannot be parsed, so they are computed from those with dots.
    """
    known: dict[str, tuple[str, ...]] = {module: (module,) for module in modules}
    for other, own, table in _BLOCKS:
        for index in {module.split(".")[1] for module in known if module.startswith(f"{own}.")}:
            for name, parts in table.items():
                targets = tuple(f"{own}.{index}.{part}" for part in parts)
                if known.keys() >= set(targets):
                    known[f"{other}.{index}.{name}"] = targets
    for name, module in _BESIDE_BLOCKS.items():
        if module in known:
            known[name] = (module,)
    return known | {name.replace(".", "_"): parts for name, parts in known.items()}


def comfyui_name(module: str) -> tuple[str, tuple[str, ...]]:
    """Return ComfyUI's own name of a module, and all modules that are fused under it, in the order of its rows."""
    for other, own, table in _BLOCKS:
        if module.startswith(f"{own}."):
            _, index, layer = module.split(".", 2)
            name, parts = next((name, parts) for name, parts in table.items() if layer in parts)
            return f"{other}.{index}.{name}", tuple(f"{own}.{index}.{part}" for part in parts)
    return next(name for name, other in _BESIDE_BLOCKS.items() if other == module), (module,)
