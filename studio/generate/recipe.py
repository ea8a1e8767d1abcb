"""Recipes: everything that a picture is made from, so that it can be made again."""

from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from lithograph.client.protocol import Options, body_of
from lithograph.client.recipe import Recipe
from longcat.sampling.quality import Quality

LARGEST_SEED = 2**63 - 1
LARGEST_SCALE = 10.0
"""The service's limit, for negative scales too."""
Scale = Annotated[float, Field(ge=-LARGEST_SCALE, le=LARGEST_SCALE, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScaledAdapter(_Frozen):
    """An adapter, and how strongly it is applied."""

    name: str
    """``ink``, or ``ink@3``."""
    scale: float = 1.0


class PictureRecipe(_Frozen):
    """A request; a field that is None gets the service's default for its model."""

    prompt: str = ""
    """Empty in a form that is not filled in yet."""
    negative_prompt: str = ""
    width: int | None = None
    """In px, as the height."""
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    """Seed of the first picture; each later picture adds 1. None: a random seed."""
    num_images: int = 1
    cfg_renorm: bool = True
    """Limit each token's guided norm to the conditional one's."""
    quality: Quality | None = "exact"
    """None: another tolerance than that of a quality."""
    rewrite_prompt: bool = False
    """Let the model's text encoder enrich the prompt first."""
    adapters: tuple[ScaledAdapter, ...] = ()

    @classmethod
    def of_file(cls, recipe: Recipe) -> "PictureRecipe":
        """Return the recipe that a picture file carries."""
        request = recipe.request
        fields = {name: getattr(request, name) for name in cls.model_fields if name != "adapters"}
        adapters = tuple(ScaledAdapter(name=choice.name, scale=choice.scale) for choice in request.adapters)
        return cls(**fields, adapters=adapters)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that are set, without prompts and adapters: a form shows them once it knows the model."""
        return self.model_dump(exclude={"prompt", "negative_prompt", "adapters"}, exclude_none=True)

    def options(self) -> dict[str, Any]:
        """Return the options of ``lithograph.Client``, beside the prompt."""
        options = self.model_dump(exclude={"prompt", "adapters"}, exclude_none=True)
        return options | {"adapters": {adapter.name: adapter.scale for adapter in self.adapters}}

    @property
    def body(self) -> dict[str, Any]:
        """The recipe as the body of ``POST /generate``."""
        return body_of(self.prompt, cast(Options, self.options()))

    def without_adapters(self) -> "PictureRecipe":
        """Return this recipe for the base model alone."""
        return self.model_copy(update={"adapters": ()})

    def with_seed(self, seed: int | None, *, num_images: int) -> "PictureRecipe":
        """Return this recipe with another seed and number of images."""
        return self.model_copy(update={"seed": seed, "num_images": num_images})
