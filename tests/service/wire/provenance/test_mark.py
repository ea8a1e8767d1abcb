"""The visible mark: its height, its contrast on any background, its place, its font, and the recipe that notes it."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from lithograph.generation.recipe import mark_of_recipe
from longcat.errors import ConfigError, RecipeError
from service.wire.picture import PictureWriter, Recipe, read_recipe
from service.wire.provenance.mark import MarkPainter
from service.wire.provenance.settings import ProvenanceConfig
from tests.service.wire.provenance.test_packet import MODEL, PIXELS, a_request

DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""A font with Greek and without Chinese."""
NOTO = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
"""Debian's fonts-noto-cjk, which `make test` installs."""
CORNERS = ("bottom-right", "bottom-left", "top-right", "top-left")


def changed(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and the columns of changed pixels."""
    rows, columns = np.where((before != after).any(2))
    return rows, columns


@pytest.mark.parametrize("size", [(1024, 1024), (512, 768), (128, 64)])
def test_capitals_are_5_percent_of_the_shorter_side_high(size: tuple[int, int]) -> None:
    height, width = size
    before = np.zeros((height, width, 3), np.uint8)  # black, so that the outline changes nothing
    rows, columns = changed(before, MarkPainter("HX", "bottom-right", None).painted(before))
    high = rows.max() - rows.min() + 1
    assert 0.05 * min(size) <= high <= 0.05 * min(size) + 3
    assert columns.min() > width / 2
    assert rows.min() > height / 2


@pytest.mark.parametrize("level", [0, 90, 128, 255])
def test_the_text_is_white_beside_black_on_any_background(level: int) -> None:
    before = np.full((512, 512, 3), level, np.uint8)
    after = MarkPainter("AI", "top-left", None).painted(before)
    rows, columns = changed(before, after)
    within = after[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].max(2)
    assert (within > 250).mean() > 0.1
    assert (within < 5).mean() > 0.1


@pytest.mark.parametrize("position", CORNERS)
@pytest.mark.parametrize("font", [None, DEJAVU])
def test_the_mark_is_whole_in_its_corner(position: Any, font: Path | None) -> None:
    before = np.full((256, 512, 3), 128, np.uint8)
    rows, columns = changed(before, MarkPainter("Ag", position, font).painted(before))
    assert (rows.max() < 128, rows.min() >= 128) == ("top" in position, "bottom" in position)
    assert (columns.max() < 256, columns.min() >= 256) == ("left" in position, "right" in position)
    assert rows.min() > 0
    assert rows.max() < 255
    assert columns.min() > 0
    assert columns.max() < 511


def test_chinese_is_painted_in_a_font_that_has_it() -> None:
    before = np.zeros((1024, 1024, 3), np.uint8)
    painted = {
        text: MarkPainter(text, "bottom-right", NOTO).painted(before) for text in ("生成", "成生", "人工智能生成")
    }
    assert not np.array_equal(painted["生成"], painted["成生"])
    rows, _ = changed(before, painted["人工智能生成"])
    assert rows.max() - rows.min() + 1 >= 0.05 * 1024


@pytest.mark.parametrize(
    ("settings", "code", "shown"),
    [
        ({"visible_mark": "AI生成"}, "visible_mark_without_glyph", "生 成"),
        ({"visible_mark": "AI生成", "visible_mark_font": DEJAVU}, "visible_mark_without_glyph", "DejaVuSans"),
        ({"visible_mark": "made by a model " * 2}, "visible_mark_too_long", "shorter"),
        ({"visible_mark": "A\nI"}, "visible_mark_unprintable", "line"),
        ({"visible_mark": " "}, "visible_mark_unprintable", "line"),
        ({"visible_mark": "A" * 41}, "string_too_long", "40"),
        ({"visible_mark": "AI", "visible_mark_font": Path(__file__)}, "visible_mark_font_unreadable", "font"),
        ({"visible_mark": "AI", "visible_mark_font": Path("/none")}, "visible_mark_font_unreadable", "No such file"),
        ({"visible_mark_font": DEJAVU}, "visible_mark_font_alone", "--visible-mark"),
    ],
)
def test_a_mark_that_cannot_be_painted_is_refused_at_start(settings: dict[str, Any], code: str, shown: str) -> None:
    with pytest.raises(ConfigError, match=shown) as refused:
        ProvenanceConfig(**settings)
    assert [problem.code for problem in refused.value.problems] == [code]


@pytest.mark.parametrize("font", [None, DEJAVU])
def test_the_recipe_notes_the_mark_so_that_it_is_repeated(tmp_path: Path, font: Path | None) -> None:
    config = ProvenanceConfig(
        visible_mark="AI Ω" if font else "AI", visible_mark_position="top-left", visible_mark_font=font
    )
    content = PictureWriter(MODEL, config).file_of(PIXELS, a_request("png"), 0, ())
    assert not np.array_equal(np.asarray(Image.open(io.BytesIO(content))), PIXELS)
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    recipe = read_recipe(path)
    repeated = ProvenanceConfig(**mark_of_recipe(recipe, path, font), visible_mark_font=font)
    assert PictureWriter(MODEL, repeated).file_of(PIXELS, a_request("png"), 0, ()) == content
    with pytest.raises(RecipeError, match="--visible-mark-font"):
        mark_of_recipe(recipe, path, DEJAVU.with_name("DejaVuSans-Bold.ttf"))


def test_a_recipe_without_a_mark_is_as_before_there_were_marks() -> None:
    recipe = Recipe(request=a_request("png"), model=MODEL)
    assert "mark" not in recipe.as_json()
    assert mark_of_recipe(recipe, Path("picture.png"), None) == {}
    assert ProvenanceConfig().fixed == {"picture_label": "on", "picture_producer": "Lithograph", "picture_recipe": "on"}
