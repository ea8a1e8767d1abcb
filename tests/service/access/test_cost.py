"""The cost of a request in pixel-steps."""

import pytest

from service.access.cost import pixel_steps_of
from service.wire.editing.fields import ResolvedEdit
from service.wire.schema import ResolvedRequest

PICTURE = "0" * 64


def edit(*, strength: float, is_reference: bool) -> ResolvedEdit:
    return ResolvedEdit(image_sha256=PICTURE, strength=strength, is_reference=is_reference)


@pytest.mark.parametrize(
    ("guidance_scale", "changed", "steps"),
    [
        (1.0, None, 10),
        (4.5, None, 20),
        (1.0, edit(strength=0.5, is_reference=False), 5),
        (1.0, edit(strength=1.0, is_reference=True), 20),
        (4.5, edit(strength=0.5, is_reference=True), 20),
    ],
)
def test_rows_steps_and_a_reference_cost(guidance_scale: float, changed: ResolvedEdit | None, steps: int) -> None:
    request = ResolvedRequest(
        prompt="p", negative_prompt="", width=64, height=128, steps=10, guidance_scale=guidance_scale, seed=0,
        num_images=3, cfg_renorm=True, rewrite_prompt=False, output_format="png", edit=changed,
    )  # fmt: skip
    assert pixel_steps_of(request) == 3 * 64 * 128 * steps
