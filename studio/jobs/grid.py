"""The grid of a training's validation pictures, prompt by step."""

from dataclasses import dataclass
from pathlib import Path

from studio.jobs.job_view import JobView
from studio.web.validation_scene import scene_of


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """A prompt of the validation grid."""

    prompt: str
    is_base: bool
    """True for a prompt unrelated to the training data, which shows damage to the base model."""
    pictures: tuple[str | None, ...]
    """Paths below the output directory, one a column; None where a picture is missing."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Validation pictures, prompt by step."""

    steps: tuple[int, ...]
    """Steps of the columns after the base model's."""
    rows: tuple[GridRow, ...]


def grid_of(view: JobView) -> Grid | None:
    """Return the grid of validation pictures; None before the first."""
    if view.output is None or view.run is None or not view.run.validations:
        return None
    validations = view.run.validations
    by_name = [{Path(path).name: path for path in validation.images} for validation in validations]
    names = list(dict.fromkeys(name for drawn in by_name for name in drawn))
    rows = []
    for name in names:
        base = f"validation/base/{name}"
        drawn = (base if (view.output / base).exists() else None, *(paths.get(name) for paths in by_name))
        scenes = (scene_of(view.output / path) for path in drawn if path is not None)
        scene = next(filter(None, scenes), {})  # of the first picture that still exists
        rows.append(GridRow(prompt=scene.get("prompt", name), is_base=bool(scene.get("is_base")), pictures=drawn))
    return Grid(steps=tuple(validation.step for validation in validations), rows=tuple(rows))
