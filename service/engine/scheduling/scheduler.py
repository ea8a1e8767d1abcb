"""The scheduler, which picks the images that are denoised together in the next step.

Whose image is admitted to the steps next is decided in ``waiting``, by priority and by key. The bounds on waiting, with a
key's ``cost`` in pixel-steps (``service.access.cost``) and its share of all keys that wait:

- **Between two images of a key k** that are admitted while it waits, every other key j gets at most ``cost_k * share_j /
  share_k`` pixel-steps and one image: a key that floods the queue waits for itself. Without keys, all requests are of one,
  whose images are admitted in the order of arrival.
- **Behind higher priorities**, an image waits for at most ``HIGHER_SHARE`` times its own pixel-steps and one image, until
  it is next. An image is parked at most ``MOST_PARKINGS`` times, and waits as often for that.
- **For rows**, the next image waits until one of its size is finished, and no other one of its size is admitted before.
- **Between two steps** of an image there is at most one forward of each other size, if all images are of one key.
  Otherwise sizes share the forwards by the shares of their images' keys, each divided among the key's sizes: between two
  forwards of size a, size b gets at most ``cost_a * share_b / share_a`` pixel-steps and one forward. Besides, every second
  forward may be one of images of high priority, out of turn.
- **The first step** of an image of high priority begins within two forwards once its prompt is encoded, unless images of
  high priority, or ones that were parked too often, hold the rows or slots that it needs.
"""

from collections import Counter
from collections.abc import Collection

from service.engine.request_state import RequestState, ScheduledImage, Size
from service.engine.scheduling.fair_shares import FairShares
from service.memory.admission import StepMemory
from service.wire.schema import HIGHEST, rank_of

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
        self._parked: list[ScheduledImage] = []
        self._turns = FairShares()
        """Forwards of sizes, if images are of several keys."""
        self._is_out_of_turn = False
        """The last forward was one of high priority that was not its size's turn."""

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def rows(self) -> int:
        """Return the rows of all admitted images."""
        return sum(map(rows_of, self._groups.values()))

    @property
    def images(self) -> list[ScheduledImage]:
        """Return all admitted images."""
        return [image for group in self._groups.values() for image in group]

    @property
    def parked(self) -> int:
        """Return the number of parked images."""
        return len(self._parked)

    def fits(self, state: RequestState, *, without: Collection[ScheduledImage] = ()) -> bool:
        """Return True if one more image of a request can be admitted now; ``without``: if these were parked before."""
        size = state.size
        limit = min(self._max_rows, self._max_rows * self._default_px // (size[0] * size[1]))
        limit = max(_MIN_ROWS, min(limit, self._bounds.get(size, limit)))
        if rows_of([i for i in self._groups.get(size, []) if i not in without]) + state.rows_per_image > limit:
            return False
        return self._memory is None or self._fits_memory(self._memory, state, without)

    def _fits_memory(self, memory: StepMemory, state: RequestState, without: Collection[ScheduledImage]) -> bool:
        """Return True if every size has memory for its forward beside all images and one of this request.

        A forward of one image is divided if its rows do not fit at once.
        """
        if not self._groups:
            return True  # ``StepMemory.check`` has refused images that do not fit alone
        kept = self._image_bytes(memory) + (0 if state.parked else memory.image_bytes(state.request))
        needed = {size: rows_of([i for i in images if i not in without]) for size, images in self._groups.items()}
        needed[state.size] = needed.get(state.size, 0) + state.rows_per_image
        return all((rows if rows > _MIN_ROWS else 1) <= memory.rows(size, kept) for size, rows in needed.items())

    def _image_bytes(self, memory: StepMemory) -> int:
        return sum(memory.image_bytes(image.state.request) for image in (*self.images, *self._parked))

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

    def park(self, image: ScheduledImage) -> None:
        """Take an image out of the steps until ``resume``."""
        self.remove(image)
        image.parkings += 1
        self._parked.append(image)

    def resume(self, image: ScheduledImage) -> None:
        """Admit a parked image to the steps again."""
        self._parked.remove(image)
        self.add(image)

    def discard_parked(self, image: ScheduledImage) -> None:
        """Remove a parked image for good."""
        self._parked.remove(image)

    def next(self) -> list[ScheduledImage]:
        """Return the images of the next step, and move their size behind the other sizes."""
        size = self._next_size() if len(self._groups) > 1 else next(iter(self._groups))
        self._groups[size] = group = self._groups.pop(size)
        return list(group)

    def _next_size(self) -> Size:
        """Return one of several sizes: that of an image of high priority every other time, else that whose turn it is."""
        shares = self._shares_of_sizes()
        size = min(self._groups, key=self._turns.start) if shares else next(iter(self._groups))
        urgent = {s: min(steps) for s, images in self._groups.items() if (steps := _urgent_steps(images))}
        self._is_out_of_turn = bool(urgent) and not self._is_out_of_turn
        if self._is_out_of_turn:
            size = min(urgent, key=urgent.__getitem__)
        if shares:
            self._turns.charge(size, size[0] * size[1] * rows_of(self._groups[size]), share=shares[size])
        return size

    def _shares_of_sizes(self) -> dict[Size, float]:
        """Return each size's part of the shares of its images' keys; nothing if there is only one key."""
        keys = {size: {i.state.key: i.state.command.share for i in images} for size, images in self._groups.items()}
        sizes_of = Counter(key for shares in keys.values() for key in shares)
        if len(sizes_of) == 1:
            return {}
        return {size: sum(share / sizes_of[key] for key, share in shares.items()) for size, shares in keys.items()}

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


def _urgent_steps(images: list[ScheduledImage]) -> list[int]:
    """Return the steps that images of high priority have made."""
    return [image.denoising.step for image in images if image.state.rank == rank_of(HIGHEST)]
