"""The layers of a model that an adapter changes, and whether it fits them. No torch.

A model's ``config.json`` gives its layers: what does not fit is found before weights are downloaded or loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from longcat.errors import ConfigError
from longcat.model.memory.weights import read_transformer
from trainer.config.options import TrainConfig
from trainer.config.simpletuner.lycoris import LycorisConfig
from trainer.config.simpletuner.lycoris_layer import LayerOptions

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


Widths = Mapping[str, tuple[int, int]]
"""Linear layers by name, with their (in, out) widths."""


def check_fit(config: TrainConfig, folder: Path) -> None:
    """Check that the model of a directory has the layers, and that they are wide enough. Raises ``ConfigError``."""
    widths = {layer.name: (layer.width_in, layer.width_out) for layer in read_transformer(folder).linears()}
    if config.lycoris_config is not None:
        for name, options in lycoris_targets(widths, config.lycoris_config).items():
            options.shapes(*widths[name])
        return
    most = max(min(widths[name]) for name in lora_targets(widths, config.lora_targets))
    if config.lora_rank > most:
        raise ConfigError(
            "lora_rank_too_large",
            "more than the width of any layer that lora_targets selects, {most}",
            remedy="give at most {most}; 4 to 64 are usual",
            field="lora_rank",
            value=config.lora_rank,
            most=most,
        )


def lora_targets(widths: Widths, targets: str | Sequence[str]) -> list[str]:
    """Return the names of the layers that ``lora_targets`` selects. Raises ``ConfigError`` for an unknown ending."""
    for ending in endings_of(targets):
        if not any(selects([ending], name) for name in widths):
            raise ConfigError(
                "lora_target_unknown",
                "no layer has a name with this ending",
                remedy="give endings such as {known}",
                field="lora_targets",
                value=ending,
                known=", ".join(sorted({name.split(".", 2)[2] for name in widths if is_blocks_own(name)})),
            )
    return sorted(name for name in widths if selects(targets, name))


def lycoris_targets(widths: Widths, config: LycorisConfig) -> dict[str, LayerOptions]:
    """Return the layers that ``lycoris_config`` changes, with their options. Raises ``ConfigError`` if there are none."""
    selected = {name: options for name in widths if (options := config.options_of(name)) is not None}
    if not selected:
        preset = config.apply_preset
        raise ConfigError(
            "lycoris_selects_nothing",
            "target_module {targets} selects no layer of this model",
            remedy="give classes of its modules: LongCatImageAttention and FeedForward, or LongCatImageTransformerBlock and "
            "LongCatImageSingleTransformerBlock",
            field="lycoris_config",
            value="apply_preset",
            targets=", ".join([*preset.target_module, *preset.module_algo_map]) or "-",
        )
    return selected
