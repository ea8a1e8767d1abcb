"""Qualities: how closely pictures follow those of which every row is computed, as tolerances of step reuse. No torch.

A model's tolerances are in ``quality.json`` beside its weights: ``python -m recipes.quality`` measures and writes them. They
are no part of the model's hash: recipes of pictures have the tolerance itself.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from longcat.model.flavour import QUALITY_FILE, read_settings

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
    return read_settings(Tolerances, folder / QUALITY_FILE, flavour=folder.name)
