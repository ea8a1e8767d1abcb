"""Limits, defaults and usual sizes of the service, for the form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from longcat.model.shape import GRID_PX
from studio.generate.recipe import PictureRecipe
from studio.web.errors import FormError

_RATIOS = (1.0, 3 / 4, 4 / 3, 9 / 16, 16 / 9)
"""Width by height."""
_LARGER = (1.5, 2.0)
"""Squares, as multiples of the default side."""


@dataclass(frozen=True, kw_only=True)
class GenerationLimits:
    """Limits and defaults of one service."""

    width: int = 1024
    height: int = 1024
    steps: int = 30
    guidance_scale: float = 4.5
    max_pixels: int = 2048 * 2048
    max_steps: int = 100
    max_images: int = 8
    cfg_renorm: bool = True
    trained_sizes: tuple[tuple[int, int], ...] = ()
    """Widths and heights at which the model was measured to draw well; empty where there is none or nothing was measured."""
    edits: bool = False
    """The model changes a picture as the prompt says, and needs one."""
    takes_pictures: bool = True
    """False for a service of a version that only draws from words."""
    max_image_bytes: int = 16 * 2**20
    max_image_pixels: int = 32_000_000

    @classmethod
    def of(cls, info: Mapping[str, Any] | None) -> Self:
        """Read ``GET /v1/info``; LongCat-Image's own limits before the service has answered."""
        if info is None:
            return cls()
        defaults, limits = info["defaults"], info["limits"]
        return cls(
            width=defaults["width"],
            height=defaults["height"],
            steps=defaults["steps"],
            guidance_scale=defaults["guidance_scale"],
            max_pixels=limits["max_pixels"],
            max_steps=limits["max_steps"],
            max_images=limits["max_images"],
            cfg_renorm=defaults.get("cfg_renorm", cls.cfg_renorm),
            trained_sizes=tuple((width, height) for width, height in info.get("sizes") or ()),
            edits=info.get("edits", cls.edits),
            takes_pictures="max_image_bytes" in limits,
            max_image_bytes=limits.get("max_image_bytes", cls.max_image_bytes),
            max_image_pixels=limits.get("max_image_pixels", cls.max_image_pixels),
        )

    def check_picture(self, recipe: PictureRecipe) -> None:
        """Raise ``FormError`` for a recipe without a picture if the model needs one."""
        if self.edits and recipe.edit is None:
            raise FormError(
                "model_needs_picture", "the model here changes pictures, and draws none from words alone",
                remedy="open a picture with “Edit this” and describe the change", field="picture",
            )  # fmt: skip

    @property
    def longest_px(self) -> int:
        """The longest possible side, a multiple of 64 px."""
        return self.max_pixels // GRID_PX // GRID_PX * GRID_PX

    def sizes(self) -> list[tuple[int, int]]:
        """Return the model's own sizes, or usual shapes at the default area and larger squares, all within the limits."""
        found = [*self.trained_sizes] or [
            *(self._shape(ratio) for ratio in _RATIOS),
            *((_on_grid(self.width * factor), _on_grid(self.height * factor)) for factor in _LARGER),
        ]
        return [size for size in dict.fromkeys(found) if math.prod(size) <= self.max_pixels]

    def _shape(self, ratio: float) -> tuple[int, int]:
        side = math.sqrt(self.width * self.height)
        return _on_grid(side * math.sqrt(ratio)), _on_grid(side / math.sqrt(ratio))


def _on_grid(length_px: float) -> int:
    return max(1, round(length_px / GRID_PX)) * GRID_PX
