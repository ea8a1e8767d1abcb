"""The scheduler, which picks the images that are denoised together in the next step."""

from service.engine.request_state import RequestState, ScheduledImage, Size
from service.memory.admission import StepMemory

_MIN_ROWS = 2
"""Rows that every size gets, however large: one image with guidance."""


class Scheduler:
    """The admitted images, by size. Images of one size share a forward; sizes take turns, each with its own row limit."""

    def __init__(self, *, max_rows: int, default_size_px: int, memory: StepMemory | None = None) -> None:
        """Start without images.

        ``max_rows`` is the limit of one forward at the default size. Larger images get fewer rows, because activation
        memory grows with the pixels; ``memory`` bounds the rows and the images by bytes.
        """
        self._memory = memory
        self._max_rows = max_rows
        self._default_px = default_size_px**2
        self._bounds: dict[Size, int] = {}
        """Row limits of sizes whose forwards have run out of device memory."""
        self._groups: dict[Size, list[ScheduledImage]] = {}
        """Images by size, in the order in which sizes take turns; no group is empty."""

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def rows(self) -> int:
        """Return the rows of all admitted images."""
        return sum(map(rows_of, self._groups.values()))

    def fits(self, state: RequestState) -> bool:
        """Return True if one more image of a request can be admitted now."""
        size = state.size
        limit = min(self._max_rows, self._max_rows * self._default_px // (size[0] * size[1]))
        limit = max(_MIN_ROWS, min(limit, self._bounds.get(size, limit)))
        if rows_of(self._groups.get(size, [])) + state.rows_per_image > limit:
            return False
        return self._memory is None or self._fits_memory(self._memory, state)

    def _fits_memory(self, memory: StepMemory, state: RequestState) -> bool:
        """Return True if every size has memory for its forward beside all images and one of this request.

        A forward of one image is divided if its rows do not fit at once.
        """
        if not self._groups:
            return True  # ``StepMemory.check`` has refused images that do not fit alone
        kept = self._image_bytes(memory) + memory.image_bytes(state.request)
        needed = {size: rows_of(images) for size, images in self._groups.items()}
        needed[state.size] = needed.get(state.size, 0) + state.rows_per_image
        return all((rows if rows > _MIN_ROWS else 1) <= memory.rows(size, kept) for size, rows in needed.items())

    def _image_bytes(self, memory: StepMemory) -> int:
        return sum(memory.image_bytes(image.state.request) for images in self._groups.values() for image in images)

    def bound_of(self, size: Size) -> int | None:
        """Return the most rows of a forward for which there is memory; None if it is enough for all of this size."""
        bound = self._bounds.get(size)
        if self._memory is None:
            return bound
        rows = max(1, self._memory.rows(size, self._image_bytes(self._memory)))
        return rows if bound is None else min(rows, bound)

    def bound(self, size: Size, rows: int) -> None:
        """Limit the rows of a size's forwards from now on, because memory ran out with more."""
        self._bounds[size] = rows

    def add(self, image: ScheduledImage) -> None:
        """Admit an image to the steps."""
        self._groups.setdefault(image.state.size, []).append(image)

    def next(self) -> list[ScheduledImage]:
        """Return the images of the next step, and move their size behind the other sizes."""
        size = next(iter(self._groups))
        self._groups[size] = group = self._groups.pop(size)
        return list(group)

    def remove(self, image: ScheduledImage) -> None:
        """Remove an image that is finished, failed or cancelled."""
        size = image.state.size
        self._groups[size].remove(image)
        if not self._groups[size]:
            del self._groups[size]

    def images_of(self, state: RequestState) -> list[ScheduledImage]:
        """Return the admitted images of a request."""
        return [image for image in self._groups.get(state.size, []) if image.state is state]


def rows_of(images: list[ScheduledImage]) -> int:
    """Return the rows that these images take in one forward."""
    return sum(len(image.denoising.contexts) for image in images)
