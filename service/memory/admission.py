"""Admission by bytes: which images fit the device's memory beside those that are being denoised. No torch."""

import math
from dataclasses import dataclass

from longcat.errors import UserError
from longcat.model.memory.device import readable
from longcat.model.shape import GRID_PX
from service.memory.plan import ServingPlan
from service.wire.schema import ResolvedRequest

Size = tuple[int, int]
"""Height and width in px."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The device memory for images and their steps."""

    plan: ServingPlan
    free_bytes: int
    """Memory beside weights, slots, caches, prompts and decoding."""

    def image_bytes(self, request: ResolvedRequest) -> int:
        """Return the bytes that an image of the request keeps until it is finished."""
        return self.plan.image_bytes(
            width_px=request.width,
            height_px=request.height,
            steps=request.denoising_steps,
            has_source=request.edit is not None,
        )

    def rows(self, size: Size, images_bytes: int) -> int:
        """Return how many rows of a size fit one forward beside that many bytes of images."""
        return max(0, self.free_bytes - images_bytes) // self.plan.row_bytes(width_px=size[1], height_px=size[0])

    def check(self, request: ResolvedRequest) -> None:
        """Raise ``UserError`` if not even one row of the request's images ever fits."""
        kept = self.image_bytes(request)
        if self.rows((request.height, request.width), kept) > 0:
            return
        field = "width" if request.width >= request.height else "height"
        needed = kept + self.plan.row_bytes(width_px=request.width, height_px=request.height)
        raise UserError(
            "image_exceeds_memory",
            "an image of {width} x {height} in {steps} steps takes {needed} of device memory, of which {free} are left",
            remedy="give at most {side} x {side}, or fewer steps",
            field=field,
            value=getattr(request, field),
            width=request.width,
            height=request.height,
            steps=request.steps,
            needed=readable(needed),
            free=readable(self.free_bytes),
            side=self._largest_side(request.steps),
        )

    def _largest_side(self, steps: int) -> int:
        """Return the side of the largest square that fits, in px; at least one cell of the grid."""
        side = math.isqrt(self.plan.workload.largest_pixels) // GRID_PX * GRID_PX
        while side > GRID_PX:
            if self.rows((side, side), self.plan.image_bytes(width_px=side, height_px=side, steps=steps)):
                break
            side -= GRID_PX
        return side
