"""The names by which LongCat-Image's modules go in other programs. No torch.

Black Forest Labs name Flux' blocks so, and ComfyUI (``comfy/utils.py``, ``flux_to_diffusers``) and kohya follow them. Their
attention is fused: rows of q, then k, then v, and in single blocks then the MLP's first layer.
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
    }
)
_SINGLE = MappingProxyType(
    {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear1_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "linear2": ("proj_out",),
    }
)


def module_names(modules: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Every name that these modules go by, with what it means: one module, or several in the order of their fused rows.

    Dots or underscores: underscored names cannot be parsed back, so that they are computed from the dotted ones.
    """
    known: dict[str, tuple[str, ...]] = {module: (module,) for module in modules}
    for theirs, ours, table in (
        ("double_blocks", "transformer_blocks", _DOUBLE),
        ("single_blocks", "single_transformer_blocks", _SINGLE),
    ):
        for index in {module.split(".")[1] for module in known if module.startswith(f"{ours}.")}:
            for name, parts in table.items():
                meant = tuple(f"{ours}.{index}.{part}" for part in parts)
                if known.keys() >= set(meant):
                    known[f"{theirs}.{index}.{name}"] = meant
    return known | {name.replace(".", "_"): parts for name, parts in known.items()}
