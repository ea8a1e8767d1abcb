"""Step reuse: fewer rows, almost the same picture, and no image's decisions depend on another."""

import numpy as np
import pytest
import torch

from longcat.model.loading import Components
from longcat.sampling import denoise
from longcat.sampling.forward import Forward
from longcat.sampling.reuse import Extrapolation, Reuse
from tests.longcat.sampling.test_denoise import begin

STEPS = 16


def line(sigma: float) -> torch.Tensor:
    return torch.tensor([[[1.0, -2.0]]]) + sigma * torch.tensor([[[0.5, 0.25]]])


def finish(model: Components, *pictures: denoise.Denoising) -> list[int]:
    """Denoise images together; return the rows of each step."""
    forward, rows = Forward(model.transformer, model.device), []
    while left := [picture for picture in pictures if not picture.is_done]:
        rows.append(denoise.advance(forward, left))
    return rows


def test_a_straight_prediction_is_computed_until_it_is_measured() -> None:
    reuse = Reuse(0.01, 0.0)
    for sigma in (1.0, 0.9, 0.8):
        assert reuse.rows(sigma) == 1
        reuse = reuse.extended(sigma, [line(sigma)])
    assert reuse.rows(0.7) == 0
    (filled,) = reuse.filled(0.1, [])
    assert torch.allclose(filled, line(0.1))


def test_the_estimated_error_is_that_of_a_parabola() -> None:
    """The error of a line through two points of a parabola is its second coefficient times both distances."""

    def parabola(sigma: float) -> torch.Tensor:
        return torch.full((1, 1, 2), 1 + 3 * sigma**2)

    extrapolation = Extrapolation(points=2)
    for sigma in (1.0, 0.9, 0.8):
        extrapolation = extrapolation.extended(sigma, parabola(sigma), torch.ones(1))
    error = (extrapolation.at(0.5) - parabola(0.5)).abs().mean()
    assert extrapolation.error_at(0.5) == pytest.approx(float(error), rel=1e-4)


def test_guidance_is_reused_before_velocities_are() -> None:
    """A velocity that bends, with a direction that stays: the unconditional row alone is left out."""
    reuse = Reuse(0.05, 1.0)
    held = torch.full((1, 1, 2), 0.5)
    for sigma in (1.0, 0.9, 0.8):
        conditional = line(sigma) * (1 + 9 * (1 - sigma) ** 2)
        reuse = reuse.extended(sigma, [conditional, conditional - held])
    assert reuse.rows(0.7) == 1
    conditional, unconditional = reuse.filled(0.7, [line(0.7)])
    assert torch.equal(conditional, line(0.7))
    assert torch.allclose(unconditional, line(0.7) - held)


def test_fewer_rows_make_almost_the_same_picture(model: Components) -> None:
    exact, reused = begin(model, steps=STEPS), begin(model, steps=STEPS, reuse_tolerance=0.05)
    rows = finish(model, exact), finish(model, reused)
    assert sum(rows[0]) == 2 * STEPS
    assert rows[1][:3] == [2, 2, 2]
    assert sum(rows[1]) < 0.8 * sum(rows[0])
    pixels = [denoise.decode(model.vae, picture).astype(float) for picture in (exact, reused)]
    assert 10 * np.log10(255**2 / np.mean((pixels[0] - pixels[1]) ** 2)) > 35


def test_a_tolerance_below_every_error_changes_nothing(model: Components) -> None:
    exact, reused = begin(model), begin(model, reuse_tolerance=1e-9)
    finish(model, exact, reused)
    assert torch.equal(exact.latents_1NC, reused.latents_1NC)


def test_reuse_is_bitwise_independent_of_other_images(model: Components) -> None:
    def some() -> list[denoise.Denoising]:
        return [
            begin(model, steps=STEPS, reuse_tolerance=0.05),
            begin(model, prompt="一只猫", steps=12, reuse_tolerance=0.2, guidance_scale=2.0),
            begin(model, prompt="a tree", steps=9),
            begin(model, prompt="a dog", steps=8, reuse_tolerance=0.1, guidance_scale=1.0),
        ]

    together, alone = some(), some()
    rows = finish(model, *together)
    each = [finish(model, picture) for picture in alone]
    assert rows == [sum(own[step] for own in each if step < len(own)) for step in range(STEPS)]
    assert 0 < sum(rows) < 2 * (STEPS + 12 + 9) + 8
    for picture, other in zip(together, alone, strict=True):
        assert torch.equal(picture.latents_1NC, other.latents_1NC)


def test_a_step_that_fails_changes_no_state_of_reuse(model: Components) -> None:
    picture = begin(model, steps=STEPS, reuse_tolerance=0.05)
    forward = Forward(model.transformer, model.device)
    denoise.advance(forward, [picture])
    before = picture.reuse
    broken = begin(model, steps=STEPS)
    broken.modulations = tuple(modulation[:-1] for modulation in broken.modulations)
    with pytest.raises(RuntimeError):
        denoise.advance(forward, [picture, broken])
    assert picture.reuse is before
    assert picture.step == 1
