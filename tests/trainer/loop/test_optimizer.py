import math
from typing import Literal

import pytest
import torch
from torch import nn

from trainer.loop.optimizer import clip_gradients


@pytest.mark.parametrize(
    ("method", "limit", "expected"),
    [
        ("norm", 1.0, [0.6, -0.8]),
        ("norm", math.inf, [3.0, -4.0]),
        ("value", 3.5, [3.0, -3.5]),
        ("value", math.inf, [3.0, -4.0]),
    ],
)
def test_gradients_are_limited_by_their_norm_or_one_by_one(
    method: Literal["norm", "value"], limit: float, expected: list[float]
) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]  # the last has no gradient
    for parameter, gradient in zip(parameters, (3.0, -4.0), strict=False):
        parameter.grad = torch.full((1,), gradient)
    norm = clip_gradients(parameters, limit, method)
    assert norm.item() == 5
    assert [parameter.grad.item() for parameter in parameters[:2] if parameter.grad is not None] == pytest.approx(
        expected
    )
