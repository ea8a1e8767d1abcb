"""The bytes of the VAE, diffusers' ``AutoencoderKL``, from its config.json alone. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longcat.errors import FlavourError
from longcat.model.memory.component_config import count_of, read_config

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """The sizes of an AutoencoderKL."""

    channels: Sequence[int]
    """Channels of each level; the level at the picture's own resolution comes first."""
    layers: int
    latents: int
    attends: bool

    def weight_bytes(self, item_bytes: int) -> int:
        """Return the bytes of encoder and decoder."""
        widths, last = list(self.channels), self.channels[-1]
        down = sum(
            _resnet(before, width) + (self.layers - 1) * _resnet(width, width)
            for before, width in zip([widths[0], *widths], widths, strict=False)
        )
        up = sum(
            _resnet(before, width) + self.layers * _resnet(width, width)
            for before, width in zip([last, *reversed(widths)], reversed(widths), strict=False)
        )
        resampled = sum(_conv(width, width) for width in widths[:-1]) + sum(_conv(width, width) for width in widths[1:])
        middle = 2 * _resnet(last, last) + (2 * last + 4 * (last * last + last) if self.attends else 0)
        ends = _conv(3, widths[0]) + 2 * last + _conv(last, 2 * self.latents)
        ends += _conv(self.latents, last) + 2 * widths[0] + _conv(widths[0], 3)
        return (down + up + resampled + 2 * middle + ends) * item_bytes

    def encoding_bytes(self, pixels: int, item_bytes: int) -> int:
        """Return the working memory of encoding.

        At the picture's own size, four tensors of the first level's channels are live at once, and the picture.
        """
        return pixels * (4 * self.channels[0] * item_bytes + 3 * _FLOAT32)

    def decoding_bytes(self, pixels: int, item_bytes: int) -> int:
        """Return the working memory of decoding.

        At the picture's own size, three tensors are live at once, of the channels that enter the last level: those of the
        level before it.
        """
        return pixels * (3 * max(self.channels[:2]) * item_bytes + 3 * _FLOAT32)


def read_autoencoder(folder: Path) -> Autoencoder:
    """Read the VAE's sizes. Raises ``FlavourError`` if the file is missing or not of that kind."""
    config = read_config(folder, "vae")
    channels = config.get("block_out_channels", [])
    if not channels or not all(isinstance(width, int) for width in channels):
        raise FlavourError(
            "vae_channels_invalid",
            "block_out_channels in {path} is not a list of whole numbers",
            remedy="give the channels of each level",
            field="block_out_channels",
            value=channels,
            path=str(folder / "vae" / "config.json"),
        )
    return Autoencoder(
        channels=channels,
        layers=count_of(folder, config, "layers_per_block", 1),
        latents=count_of(folder, config, "latent_channels", 4),
        attends=bool(config.get("mid_block_add_attention", True)),
    )


def _conv(width_in: int, width_out: int, side: int = 3) -> int:
    return side * side * width_in * width_out + width_out


def _resnet(width_in: int, width_out: int) -> int:
    shortcut = _conv(width_in, width_out, 1) if width_in != width_out else 0
    return 2 * width_in + _conv(width_in, width_out) + 2 * width_out + _conv(width_out, width_out) + shortcut
