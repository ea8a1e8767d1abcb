"""The fields of the form that make a grid of a request."""

import re
import secrets
from collections.abc import Callable, Iterator
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData

from longcat.problem import Problem
from studio.generate.form import is_reference
from studio.generate.grid.plan import GridPlan
from studio.generate.recipe import LARGEST_SEED, PictureRecipe, Scale
from studio.web.errors import FormError
from studio.web.forms import text_of

MOST_PICTURES = 400
BASE = "base"
"""The name of the base model among the adapters of the form."""
_MOST_OF_RANGE = 64
_SCALE = TypeAdapter(Scale)
_RANGE = re.compile(r"(\d{1,19})-(\d{1,19})")

T = TypeVar("T", int, float)


def prompts_in(form: FormData) -> tuple[str, ...]:
    """Return the grid's own prompts, each once; none if it has only the form's."""
    lines = (line.strip() for line in text_of(form, "grid_prompts").splitlines())
    return tuple(dict.fromkeys(line for line in lines if line))


def read_plan(form: FormData, recipe: PictureRecipe) -> GridPlan:
    """Return the grid that the form describes around a recipe. Raises ``FormError``."""
    chosen = [name for name in form.getlist("grid_adapter") if isinstance(name, str)]
    names = tuple("" if name == BASE else name for name in chosen if name == BASE or is_reference(name))
    given_seed = secrets.randbelow(2**32) if recipe.seed is None else recipe.seed
    plan = GridPlan(
        recipe=recipe,
        prompts=prompts_in(form) or (recipe.prompt,),
        seeds=_listed(form, "grid_seeds", _seeds) or (given_seed,),
        adapters=names or ("",),
        scales=_listed(form, "grid_scales", _scales) or (1.0,),
    )
    if plan.size > MOST_PICTURES:
        raise FormError(
            "grid_too_large", "{size} pictures are more than a grid has", remedy="choose values for at most {most}",
            field="grid_prompts", size=plan.size, most=MOST_PICTURES,
        )  # fmt: skip
    return plan


def _listed(form: FormData, field: str, read: Callable[[str], Iterator[T]]) -> tuple[T, ...]:
    """Return the values of a field, separated by commas, spaces or lines. Raises ``FormError`` at one that is none."""
    found: dict[T, None] = {}
    for part in re.split(r"[\s,，、;；]+", text_of(form, field)):
        try:
            found.update(dict.fromkeys(read(part) if part else ()))
        except ValueError as error:
            raise FormError.of(
                [
                    Problem(
                        code="grid_value_wrong",
                        template="not a value of this list",
                        remedy_template="give values separated by commas",
                        field=field,
                        value=part,
                    )
                ]
            ) from error
    return tuple(found)


def _seeds(part: str) -> Iterator[int]:
    """Yield the seeds of ``7`` or ``1-4``. Raises ``ValueError``."""
    match = _RANGE.fullmatch(part)
    first, last = (int(match[1]), int(match[2])) if match else (int(part), int(part))
    if not 0 <= first <= last <= LARGEST_SEED or last - first >= _MOST_OF_RANGE:
        raise ValueError(part)
    yield from range(first, last + 1)


def _scales(part: str) -> Iterator[float]:
    """Yield the one scale of a part. Raises ``ValueError``."""
    try:
        yield _SCALE.validate_python(part)
    except ValidationError as error:
        raise ValueError(part) from error
