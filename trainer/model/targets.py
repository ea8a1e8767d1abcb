"""The names of the layers that an adapter changes. No torch, for the memory plan."""

from collections.abc import Mapping, Sequence

TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"),
    "official": (
        "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj",
        "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    ),
}  # fmt: skip
"""Endings of layer names: SimpleTuner's choice, and the one of LongCat-Image's own trainer (``train_lora.py``)."""


WHOLE_TRANSFORMER = "whole-transformer"
"""Every linear layer, as other programs mean "all-linear": also modulations, embedders and the output layer."""
_BLOCKS_OWN = (*TARGETS["official"], "proj_mlp", "proj_out")


def endings_of(targets: str | Sequence[str]) -> tuple[str, ...]:
    """Return the endings of names that ``lora_targets`` selects; "" is the ending of every name."""
    if targets in ("all-linear", WHOLE_TRANSFORMER):
        return ("",)
    return TARGETS[targets] if isinstance(targets, str) else tuple(targets)


def selects(targets: str | Sequence[str], name: str) -> bool:
    """Return True if ``lora_targets`` selects a linear layer.

    A layer beside the blocks' own is selected by an ending that is none of the blocks' own layers: "proj_out" is that of
    blocks, "transformer.proj_out" the output layer.
    """
    if targets == WHOLE_TRANSFORMER:
        return True
    if is_blocks_own(name):
        return any(ends(name, ending) for ending in endings_of(targets))
    return not isinstance(targets, str) and any(
        ends(f"transformer.{name}", ending) for ending in targets if not any(ends(own, ending) for own in _BLOCKS_OWN)
    )


def is_blocks_own(name: str) -> bool:
    """Return True for a linear layer of a block other than its modulations."""
    return "transformer_blocks." in name and ".norm" not in name


def ends(name: str, ending: str) -> bool:
    """Return True if the last parts of a dotted name are ``ending``."""
    return not ending or name == ending or name.endswith(f".{ending}")
