"""Recipes: everything that a picture is made from, so that it can be made again."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from lithograph.client.protocol import Options, body_of
from longcat.model.shape import GRID_PX
from longcat.sampling.quality import Quality
from service.wire.picture import Recipe

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


class EditMargins(_Frozen):
    """Pixels that are added around a picture."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


class PictureEdit(_Frozen):
    """The picture that another one is made from, and how."""

    image: str
    """SHA-256 of its file, as of the mask's."""
    mask: str | None = None
    """None: all of it changes."""
    strength: float | None = None
    """Part of the steps that are made; None: the service's default."""
    expand: EditMargins | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """SHA-256 of each file that it needs."""
        return (self.image,) if self.mask is None else (self.image, self.mask)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a request beside the pictures."""
        return self.model_dump(include={"strength", "expand"}, exclude_none=True)

    def pictures(self, path_of: Callable[[str], Path]) -> dict[str, Any]:
        """Return the pictures as options of ``lithograph.Client``; ``path_of`` gives the path of a file."""
        mask = {} if self.mask is None else {"mask": path_of(self.mask)}
        return {"image": path_of(self.image), **mask}


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
    cfg_renorm: bool | None = None
    """Limit each token's guided norm to the conditional one's."""
    quality: Quality | None = "exact"
    """None: another tolerance than that of a quality."""
    rewrite_prompt: bool = False
    """Let the model's text encoder enrich the prompt first."""
    adapters: tuple[ScaledAdapter, ...] = ()
    edit: PictureEdit | None = None
    """The picture that it changes; None for one from words alone."""

    @classmethod
    def of_file(cls, recipe: Recipe) -> "PictureRecipe":
        """Return the recipe that a picture file carries."""
        request = recipe.request
        fields = {name: getattr(request, name) for name in cls.model_fields if name not in ("adapters", "edit")}
        adapters = tuple(ScaledAdapter(name=choice.name, scale=choice.scale) for choice in request.adapters)
        return cls(**fields, adapters=adapters)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that are set, without prompts and adapters: a form shows them once it knows the model."""
        return self.model_dump(exclude={"prompt", "negative_prompt", "adapters", "edit"}, exclude_none=True)

    def options(self) -> dict[str, Any]:
        """Return the options of ``lithograph.Client``, beside the prompt and the pictures."""
        unasked = {"width", "height"} if self.has_own_canvas else set()
        options = self.model_dump(exclude={"prompt", "adapters", "edit", *unasked}, exclude_none=True)
        options |= {} if self.edit is None else self.edit.settings
        return options | {"adapters": {adapter.name: adapter.scale for adapter in self.adapters}}

    @property
    def has_own_canvas(self) -> bool:
        """True if a model that edits has chosen the size by the picture's shape: no request can name such a size."""
        return self.edit is not None and any(side % GRID_PX for side in (self.width or 0, self.height or 0))

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
