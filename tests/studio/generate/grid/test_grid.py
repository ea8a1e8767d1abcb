"""Grids: their fields, their cells, their sheet."""

import io
from pathlib import Path

import pytest
from PIL import Image
from starlette.datastructures import FormData

from studio.generate.grid.form import MOST_PICTURES, read_plan
from studio.generate.grid.plan import GridPlan, PlanColumn, PlanRow
from studio.generate.grid.sheet import draw_sheet
from studio.generate.recipe import PictureRecipe, ScaledAdapter
from studio.web.errors import FormError

RECIPE = PictureRecipe(
    prompt="a cat", seed=5, steps=2, adapters=(ScaledAdapter(name="ink@1"), ScaledAdapter(name="wash"))
)


def plan_of(**fields: str | list[str]) -> GridPlan:
    pairs = [
        (name, value) for name, given in fields.items() for value in ([given] if isinstance(given, str) else given)
    ]
    return read_plan(FormData(pairs), RECIPE)


def test_fields_become_rows_and_columns_and_empty_ones_the_form() -> None:
    plan = plan_of(
        grid_prompts="a cat\n\n 一只狗 \na cat", grid_seeds="1-2, 9", grid_scales="0.5，-1.5",
        grid_adapter=["base", "ink@2", "../x"],
    )  # fmt: skip
    assert plan.rows == [PlanRow(prompt=prompt, seed=seed) for prompt in ("a cat", "一只狗") for seed in (1, 2, 9)]
    assert plan.columns == [
        PlanColumn(adapter="", scale=0.0), PlanColumn(adapter="ink@2", scale=0.5), PlanColumn(adapter="ink@2", scale=-1.5)
    ]  # fmt: skip
    assert plan.size == 18
    alone = plan_of()
    assert (alone.rows, alone.columns) == ([PlanRow(prompt="a cat", seed=5)], [PlanColumn(adapter="", scale=0.0)])


def test_a_cell_has_its_own_adapter_in_place_of_another_version() -> None:
    plan = plan_of(grid_adapter=["base", "ink@2"], grid_scales="0.5")
    (row,), (base, ink) = plan.rows, plan.columns
    assert plan.recipe_of(row, base).adapters == RECIPE.adapters
    assert plan.recipe_of(row, ink).adapters == (ScaledAdapter(name="wash"), ScaledAdapter(name="ink@2", scale=0.5))


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("grid_seeds", "1, x"), ("grid_seeds", "-1"), ("grid_seeds", "5-2"), ("grid_seeds", "1-99999"),
        ("grid_scales", "11"), ("grid_scales", "nan"), ("grid_prompts", "\n".join(map(str, range(MOST_PICTURES + 1)))),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(field: str, text: str) -> None:
    with pytest.raises(FormError) as caught:
        plan_of(**{field: text})
    assert caught.value.problems[0].field == field


def test_a_sheet_shows_every_cell_in_its_place_beside_its_labels(tmp_path: Path) -> None:
    plan = plan_of(grid_seeds="1, 2", grid_adapter=["base", "ink@2"])
    files = {}
    for cell, colour in (("0,0", (200, 0, 0)), ("0,1", (0, 200, 0)), ("1,1", (0, 0, 200))):
        files[cell] = tmp_path / f"{cell}.png"
        Image.new("RGB", (96, 64), colour).save(files[cell])
    content = draw_sheet(plan, files, title="t", label=lambda column: column.adapter, seed=lambda row: str(row.seed))
    with Image.open(io.BytesIO(content)) as sheet:
        width, height = sheet.size
        boxes = {colour: count for count, colour in sheet.getcolors(width * height)}
        assert [boxes[colour] for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))] == [96 * 64] * 3
        red, blue = ([x for x in range(width) if sheet.getpixel((x, y)) == colour] for y, colour in (
            (height - 8 - 64 - 8 - 32, (200, 0, 0)), (height - 8 - 32, (0, 0, 200))
        ))  # fmt: skip
        assert (len(red), len(blue)) == (96, 96)
        assert max(red) < min(blue)
        assert sheet.crop((0, 0, 170, height)).getextrema() != ((255, 255),) * 3  # labels of the rows
