"""The layers of a model that a configuration changes, and whether its adapter fits them. No torch.

A model's ``config.json`` gives its layers: what does not fit is found before weights are downloaded or loaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from longcat.errors import ConfigError
from longcat.model.memory.weights import read_transformer
from trainer.config.options import TrainConfig
from trainer.config.simpletuner.lycoris import LycorisConfig
from trainer.config.simpletuner.lycoris_layer import LayerOptions
from trainer.model.targets import endings_of, is_blocks_own, selects

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
