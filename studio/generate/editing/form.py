"""The fields of the editor beside those of the Generate page."""

from typing import Annotated

from pydantic import BaseModel, Field
from starlette.datastructures import FormData

from longcat.model.shape import GRID_PX
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import EditMargins, PictureEdit
from studio.web.forms import read_form


class _EditForm(BaseModel):
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    left: Annotated[int, Field(ge=0, multiple_of=GRID_PX)] = 0
    top: Annotated[int, Field(ge=0, multiple_of=GRID_PX)] = 0
    right: Annotated[int, Field(ge=0, multiple_of=GRID_PX)] = 0
    bottom: Annotated[int, Field(ge=0, multiple_of=GRID_PX)] = 0


def read_edit(form: FormData, limits: GenerationLimits, *, image: str, mask: str | None) -> PictureEdit:
    """Return the edit that the form describes. A model that edits has no strength: it starts from noise.

    Raises ``FormError`` naming every field that is wrong.
    """
    fields = read_form(_EditForm, form)
    margins = EditMargins(**fields.model_dump(exclude={"strength"}))
    return PictureEdit(
        image=image,
        mask=mask,
        strength=None if limits.edits else fields.strength,
        expand=None if margins == EditMargins() else margins,
    )
