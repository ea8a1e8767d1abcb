"""Qualities: how closely pictures follow those of which every row is computed, as tolerances of step reuse. No torch.

A model's tolerances are in ``quality.json`` beside its weights: ``python -m recipes.quality`` measures and writes them. They
are no part of the model's hash: recipes of pictures have the tolerance itself.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longcat.errors import FlavourError
from longcat.model.flavour import QUALITY_FILE
from longcat.validation import problems_of

Quality = Literal["exact", "balanced", "fast"]
Tolerance = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A relative error, as ``longcat.sampling.reuse`` estimates it. 0: every row is computed."""


class Tolerances(BaseModel):
    """The tolerances of a model's qualities.

    The defaults are for models that were not measured: TeaCache for LongCat-Image, in vLLM-Omni, tolerates an accumulated
    relative change of 0.2 (its coefficients estimate that change from a forward's first block, here it is measured).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    balanced: Tolerance = 0.1
    fast: Tolerance = 0.2
    measured: dict[str, Any] | None = None
    """What the measurement found; None where there was none."""

    def of(self, quality: Quality) -> float:
        """Return the tolerance of a quality."""
        match quality:
            case "exact":
                return 0.0
            case "balanced":
                return self.balanced
            case "fast":
                return self.fast


def tolerances_of(folder: Path) -> Tolerances:
    """Read the tolerances of a model's directory. Raises ``FlavourError`` if the file is invalid."""
    path = folder / QUALITY_FILE
    if not path.exists():
        return Tolerances()
    try:
        return Tolerances.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise FlavourError(
            "flavour_settings_invalid",
            "{path} is invalid: {cause}",
            remedy="correct the file",
            field="flavour",
            value=folder.name,
            path=str(path),
            cause=next(problems_of(error, Tolerances)),
        ) from error
