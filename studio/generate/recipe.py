"""Recipes: everything that a picture is made from, so that it can be made again."""

from typing import Any

from pydantic import BaseModel, ConfigDict

LARGEST_SEED = 2**63 - 1


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScaledAdapter(_Frozen):
    """An adapter, and how strongly it is applied."""

    name: str
    """``ink``, or ``ink@3``."""
    scale: float = 1.0


class PictureRecipe(_Frozen):
    """A request; a field that is None gets the service's default for its model."""

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    """In px, as the height."""
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    """Of the first picture; the next ones count on from it. None is random."""
    num_images: int = 1
    adapters: tuple[ScaledAdapter, ...] = ()

    def options(self) -> dict[str, Any]:
        """As ``lithograph.Client`` takes them, beside the prompt."""
        options = self.model_dump(exclude={"prompt", "adapters"}, exclude_none=True)
        return options | {"adapters": {adapter.name: adapter.scale for adapter in self.adapters}}

    def without_adapters(self) -> "PictureRecipe":
        """The same of the base model."""
        return self.model_copy(update={"adapters": ()})

    def with_seed(self, seed: int | None, *, num_images: int) -> "PictureRecipe":
        """The same from other noise."""
        return self.model_copy(update={"seed": seed, "num_images": num_images})
