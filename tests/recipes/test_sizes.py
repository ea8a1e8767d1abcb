"""The measure of sizes: their canvases, and what counts as right."""

import numpy as np
import pytest
import torch

from longcat.sampling.quality import Size
from recipes.embedded.captions import BACKGROUNDS
from recipes.embedded.evaluate import EvaluationCase
from recipes.embedded.sizes import SIZES, composed, measure
from recipes.embedded.vae import background_colours

THINGS = 3


def sprites() -> torch.Tensor:
    """Return squares of red, green and blue in the middle, (3, 4, 128, 128) in uint8."""
    drawn = torch.zeros(THINGS, 4, 128, 128, dtype=torch.uint8)
    for thing in range(THINGS):
        drawn[thing, [thing, 3], 32:96, 32:96] = 255
    return drawn


def picture(thing: int, background: int, size: Size) -> np.ndarray:
    pixels = composed(sprites()[thing].float() / 255, background_colours()[background], size)
    return (pixels * 255).round().byte().permute(1, 2, 0).numpy()


def test_the_sizes_are_those_of_the_64_px_grid_up_to_two_to_one() -> None:
    assert len(SIZES) == len(set(SIZES)) == 12
    assert {(64, 64), (128, 192), (256, 128), (256, 256)} < set(SIZES)
    assert (64, 192) not in SIZES


@pytest.mark.parametrize("size", SIZES)
def test_a_thing_is_in_the_middle_and_as_large_as_fits(size: Size) -> None:
    drawn = picture(0, 0, size)
    assert drawn.shape == (size[1], size[0], 3)
    rows, columns = np.nonzero((drawn == (255, 0, 0)).all(2))
    for places, side in ((rows, size[1]), (columns, size[0])):
        assert abs(int(places.min()) - (side - min(size) / 2) / 2) <= 2
        assert abs(int(places.max()) - (side + min(size) / 2) / 2) <= 2
    white = np.array(BACKGROUNDS[0].rgb)
    assert (drawn[:4, :4] == white).all()


def test_what_is_nearest_counts() -> None:
    cases = [EvaluationCase(prompt="", language="en", concept=thing, background=thing) for thing in range(THINGS)]
    for size in SIZES:
        drawn = [picture(thing, thing, size) for thing in range(THINGS)]
        shares = measure(cases, drawn, sprites(), size)
        assert (shares.width, shares.height, shares.thing, shares.background) == (*size, 1.0, 1.0)
        wrong = [drawn[0], picture(0, 1, size), picture(2, 0, size)]
        shares = measure(cases, wrong, sprites(), size)
        assert (shares.thing, shares.background) == (0.667, 0.667)
