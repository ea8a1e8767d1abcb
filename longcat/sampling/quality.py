"""What was measured of a model's pictures: the tolerances of its qualities, and the sizes at which it draws well. No torch.

Both are files beside the weights, and no part of the model's hash. A quality is how closely pictures follow those of which
every row is computed, as a tolerance of step reuse: ``python -m recipes.quality`` measures and writes ``quality.json``, and
recipes of pictures have the tolerance itself. ``python -m recipes.embedded.sizes`` writes ``sizes.json``.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from longcat.model.flavour import QUALITY_FILE, SIZES_FILE, read_settings

Quality = Literal["exact", "balanced", "fast"]
Tolerance = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""A relative error, as ``longcat.sampling.reuse`` estimates it. 0: every row is computed."""
Size = tuple[int, int]
"""Width and height in px."""
GOOD_SHARE = 0.9
"""Share of right pictures from which a model draws well at a size."""


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


class SizeShares(BaseModel):
    """Shares of right pictures of one size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int
    height: int
    thing: float
    """Share of pictures with the right thing."""
    background: float
    """Share of pictures with the right background."""


class MeasuredSizes(BaseModel):
    """Sizes at which a model was measured; none for a model that draws at every size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: int = 0
    """Pictures of each size."""
    results: tuple[SizeShares, ...] = ()


def sizes_of(folder: Path) -> tuple[Size, ...] | None:
    """Return the sizes at which a model's directory says that it draws well; None where nothing was measured.

    Raises ``FlavourError`` if the file is invalid.
    """
    measured = read_settings(MeasuredSizes, folder / SIZES_FILE, flavour=folder.name)
    if not measured.results:
        return None
    return tuple(
        (each.width, each.height) for each in measured.results if min(each.thing, each.background) >= GOOD_SHARE
    )
