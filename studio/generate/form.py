"""The form of the Generate page: a pydantic model within the limits of the service."""

import math
from typing import Annotated

from pydantic import BaseModel, Field, create_model
from starlette.datastructures import FormData

from longcat.adapter.reference import parse_reference
from longcat.errors import AdapterError
from longcat.model.shape import GRID_PX
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import LARGEST_SEED, PictureRecipe, ScaledAdapter
from studio.web.errors import FormError
from studio.web.forms import read_form, text_of

LARGEST_SCALE = 2.0
LARGEST_GUIDANCE = 30.0
_LONGEST_PROMPT = 20_000
"""Characters; the service has its own limit, in tokens."""

_Prompt = Annotated[str, Field(max_length=_LONGEST_PROMPT)]
_Scale = Annotated[float, Field(ge=-LARGEST_SCALE, le=LARGEST_SCALE, allow_inf_nan=False)]


def read_recipe(form: FormData, limits: GenerationLimits) -> PictureRecipe:
    """Return the recipe that the form describes. Raises ``FormError`` naming every field that is wrong."""
    names = [name for name in form.getlist("adapter") if isinstance(name, str) and _is_reference(name)]
    given = read_form(_model(limits), form, adapters={name: text_of(form, f"scale:{name}") or 0.0 for name in names})
    fields = given.model_dump()
    adapters = tuple(ScaledAdapter(name=name, scale=scale) for name, scale in fields.pop("adapters").items())
    recipe = PictureRecipe(**fields, adapters=adapters)
    width, height = recipe.width or limits.width, recipe.height or limits.height
    if width * height > limits.max_pixels:
        raise FormError(
            "image_too_large", "{width} × {height} has more pixels than the service generates",
            remedy="give at most {side} × {side}",
            field="width", width=width, height=height, side=math.isqrt(limits.max_pixels) // GRID_PX * GRID_PX,
        )  # fmt: skip
    return recipe


def _model(limits: GenerationLimits) -> type[BaseModel]:
    side = Annotated[int, Field(ge=GRID_PX, le=limits.longest_px, multiple_of=GRID_PX)] | None
    return create_model(
        "GenerateForm",
        prompt=(_Prompt, ...),
        negative_prompt=(_Prompt, ""),
        width=(side, None),
        height=(side, None),
        steps=(Annotated[int, Field(ge=1, le=limits.max_steps)] | None, None),
        guidance_scale=(Annotated[float, Field(ge=0, le=LARGEST_GUIDANCE, allow_inf_nan=False)] | None, None),
        seed=(Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None, None),
        num_images=(Annotated[int, Field(ge=1, le=limits.max_images)], 1),
        adapters=(dict[str, _Scale], {}),
    )


def _is_reference(name: str) -> bool:
    try:
        parse_reference(name)
    except AdapterError:
        return False
    return True
