"""Which layers an adapter changes, by name. No torch: the memory plan asks too."""

from collections.abc import Mapping, Sequence

TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"),
    "official": (
        "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj",
        "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    ),
}  # fmt: skip
"""Endings of names. SimpleTuner's choice, and that of LongCat-Image's own trainer (its ``train_lora.py``)."""


def endings_of(wanted: str | Sequence[str]) -> tuple[str, ...]:
    """The endings that ``lora_targets`` means; "" is every layer's."""
    if wanted == "all-linear":
        return ("",)
    return TARGETS[wanted] if isinstance(wanted, str) else tuple(wanted)


def ends(name: str, ending: str) -> bool:
    """Whether the last parts of a dotted name are these."""
    return not ending or name == ending or name.endswith(f".{ending}")
