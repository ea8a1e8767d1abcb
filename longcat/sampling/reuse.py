"""Step reuse: predictions that follow closely enough from an image's own earlier ones are not computed.

Along an image's way from noise, the conditional velocity and its difference from the unconditional one (the direction of
guidance) change slowly. The velocity is extrapolated over the noise level, by the line through its last two computed values;
of the direction, which changes less regularly, the last computed value is held. When one is computed, the error of what
would have stood in for it is measured, relative to the velocity; its divided difference gives an estimate of the error at
later noise levels. While that of the velocity is below the tolerance, the image leaves the step's forward; while that of the
direction is, its unconditional row does.

The decisions depend on the image alone: it is bitwise the same beside any others, each with its own steps and adapters.

Sources: "From Reusing to Forecasting" (TaylorSeer, Liu et al. 2025, arXiv:2503.06923) extrapolates features; "Timestep
Embedding Tells" (TeaCache, Liu et al. 2024, arXiv:2411.19108) skips steps up to a tolerated relative change; the estimate is
that of step-size control in multistep methods (Hairer, Nørsett, Wanner, "Solving Ordinary Differential Equations I", III.5).

Shapes: N image tokens, C = 64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """The last computed values of a prediction, and the polynomial through them: of one value a constant, of two a line."""

    points: int
    """Values to keep, 1 or 2."""
    sigmas: tuple[float, ...] = ()
    """Their noise levels, falling."""
    values: tuple[Tensor, ...] = ()
    """(1, N, C) each."""
    change: Tensor | None = None
    """Divided difference of the last value and those before it, relative: 0-dim in float32. None before there are enough."""

    def at(self, sigma: float) -> Tensor:
        """Return the polynomial's value at a noise level, (1, N, C)."""
        *earlier, last = self.values
        if not earlier:
            return last
        weight = (sigma - self.sigmas[0]) / (self.sigmas[1] - self.sigmas[0])
        return torch.lerp(earlier[0].float(), last.float(), weight).to(last.dtype)

    def error_at(self, sigma: float) -> float:
        """Return the estimated relative error of ``at``; infinite before the first measurement. Waits for the device."""
        return math.inf if self.change is None else float(self.change) * self._distance(sigma)

    def extended(self, sigma: float, value: Tensor, velocity: Tensor) -> "Extrapolation":
        """Return it with a computed value. Errors are relative to ``velocity``."""
        change = None
        if len(self.values) == self.points:
            error = (value.float() - self.at(sigma).float()).abs().mean() / velocity.float().abs().mean()
            change = error / self._distance(sigma)
        kept = slice(-self.points, None)
        return Extrapolation(self.points, (*self.sigmas, sigma)[kept], (*self.values, value)[kept], change)

    def _distance(self, sigma: float) -> float:
        return math.prod(earlier - sigma for earlier in self.sigmas)


@dataclass(frozen=True, eq=False)
class Reuse:
    """The state of one image's step reuse. A step that fails leaves it as it was."""

    tolerance: float
    """Largest estimated error of a prediction that is not computed, relative to the conditional velocity."""
    guidance_weight: float
    """Weight of the direction's error, the guidance scale less 1; 0 without guidance."""
    velocity: Extrapolation = Extrapolation(points=2)
    direction: Extrapolation = Extrapolation(points=1)

    def rows(self, sigma: float) -> int:
        """Return how many rows the step at a noise level computes: none, the conditional one, or with guidance both."""
        if self.velocity.error_at(sigma) < self.tolerance:
            return 0
        if not self.guidance_weight or self.guidance_weight * self.direction.error_at(sigma) < self.tolerance:
            return 1
        return 2

    def filled(self, sigma: float, computed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the conditional velocity, and with guidance the unconditional one, from those that were computed."""
        conditional = computed[0] if computed else self.velocity.at(sigma)
        if not self.guidance_weight:
            return (conditional,)
        return conditional, computed[1] if len(computed) > 1 else conditional - self.direction.at(sigma)

    def extended(self, sigma: float, computed: Sequence[Tensor]) -> "Reuse":
        """Return the state after a step that computed these velocities, (1, N, C) each."""
        if not computed:
            return self
        conditional = computed[0]
        direction = self.direction
        if len(computed) > 1:
            direction = direction.extended(sigma, conditional - computed[1], conditional)
        velocity = self.velocity.extended(sigma, conditional, conditional)
        return replace(self, velocity=velocity, direction=direction)
