"""Recipes: every parameter that a picture depends on, so that it can be generated again."""

from typing import Any

from pydantic import BaseModel, ConfigDict

LARGEST_SEED = 2**63 - 1


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScaledAdapter(_Frozen):
    """An adapter and the scale at which it is applied."""

    name: str
    """``ink``, or ``ink@3``."""
    scale: float = 1.0


class PictureRecipe(_Frozen):
    """A request; a field that is None gets the service's default for its model."""

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    """Width in px, as the height."""
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    """Seed of the first picture; each further picture adds 1. None picks one at random."""
    num_images: int = 1
    adapters: tuple[ScaledAdapter, ...] = ()

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of ``lithograph.Client``, without the prompt."""
        options = self.model_dump(exclude={"prompt", "adapters"}, exclude_none=True)
        return options | {"adapters": {adapter.name: adapter.scale for adapter in self.adapters}}

    def without_adapters(self) -> "PictureRecipe":
        """Return the recipe for the base model alone."""
        return self.model_copy(update={"adapters": ()})

    def with_seed(self, seed: int | None, *, num_images: int) -> "PictureRecipe":
        """Return the recipe with another seed."""
        return self.model_copy(update={"seed": seed, "num_images": num_images})
