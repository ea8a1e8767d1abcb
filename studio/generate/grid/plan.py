"""The plan of a grid: a recipe, and the values that its rows and columns vary."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from studio.generate.recipe import PictureRecipe, ScaledAdapter


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """A prompt and a seed."""

    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class PlanColumn:
    """An adapter at a scale; without a name, the base model."""

    adapter: str
    scale: float


class GridPlan(BaseModel):
    """A recipe and what varies. The order is that of the view."""

    model_config = ConfigDict(frozen=True)

    recipe: PictureRecipe
    """Everything that does not vary. Its adapters are applied in every column, below the column's own."""
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    adapters: tuple[str, ...]
    """``ink@3``, or an empty name for the base model."""
    scales: tuple[float, ...]

    @property
    def rows(self) -> list[PlanRow]:
        """Every prompt with every seed."""
        return [PlanRow(prompt=prompt, seed=seed) for prompt in self.prompts for seed in self.seeds]

    @property
    def columns(self) -> list[PlanColumn]:
        """Every adapter at every scale; the base model once."""
        found = (
            PlanColumn(adapter=name, scale=scale if name else 0.0) for name in self.adapters for scale in self.scales
        )
        return list(dict.fromkeys(found))

    @property
    def size(self) -> int:
        """The number of pictures."""
        return len(self.rows) * len(self.columns)

    def recipe_of(self, row: PlanRow, column: PlanColumn) -> PictureRecipe:
        """Return the recipe of one cell."""
        own = (ScaledAdapter(name=column.adapter, scale=column.scale),) if column.adapter else ()
        name = column.adapter.partition("@")[0]
        others = tuple(a for a in self.recipe.adapters if not column.adapter or a.name.partition("@")[0] != name)
        changes = {"prompt": row.prompt, "seed": row.seed, "num_images": 1, "adapters": (*others, *own)}
        return self.recipe.model_copy(update=changes)
