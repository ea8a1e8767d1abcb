"""The form of the Generate page: a pydantic model within the limits of the service."""

import math
from typing import Annotated

from pydantic import BaseModel, Field, create_model
from starlette.datastructures import FormData

from longcat.adapter.reference import parse_reference
from longcat.errors import AdapterError
from longcat.model.shape import GRID_PX
from longcat.sampling.quality import Quality
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import LARGEST_SEED, PictureRecipe, Scale, ScaledAdapter
from studio.web.errors import FormError
from studio.web.forms import read_form, text_of

LARGEST_GUIDANCE = 30.0
_LONGEST_PROMPT = 20_000
"""Characters; the service has its own limit, in tokens."""

_Prompt = Annotated[str, Field(max_length=_LONGEST_PROMPT)]


def read_recipe(form: FormData, limits: GenerationLimits, *, prompt: str = "") -> PictureRecipe:
    """Return the recipe that the form describes; ``prompt`` stands for one that it leaves out.

    Raises ``FormError`` naming every field that is wrong.
    """
    names = [name for name in form.getlist("adapter") if isinstance(name, str) and is_reference(name)]
    values: dict[str, object] = {"adapters": {name: text_of(form, f"scale:{name}") or 0.0 for name in names}}
    if prompt and not text_of(form, "prompt"):
        values["prompt"] = prompt
    given = read_form(_model(limits), form, **values)
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
        quality=(Quality, "exact"),
        cfg_renorm=(bool | None, None),
        rewrite_prompt=(bool, False),
        adapters=(dict[str, Scale], {}),
    )


def is_reference(name: str) -> bool:
    """Return True for a name that an adapter or a version of one can have."""
    try:
        parse_reference(name)
    except AdapterError:
        return False
    return True
