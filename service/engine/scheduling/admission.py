"""Admission of images to the steps, between two of them."""

from collections.abc import Callable

from service.engine.request_state import RequestState, ScheduledImage, Size
from service.engine.scheduling.parking import images_to_park
from service.engine.scheduling.scheduler import Scheduler
from service.engine.scheduling.waiting import WaitingRequests
from service.engine.slot_table import SlotTable


class ImageAdmission:
    """The requests that wait, and the images that they are given rows and slots for."""

    def __init__(
        self,
        scheduler: Scheduler,
        slot_table: SlotTable,
        *,
        begin: Callable[[RequestState, tuple[int, ...]], None],
        on_failure: Callable[[RequestState, Exception], None],
    ) -> None:
        """``begin`` adds a request's next image to the scheduler; ``on_failure`` ends a request for which that raises."""
        self.parkings = 0
        """Images that were parked."""
        self._waiting = WaitingRequests()
        self._scheduler = scheduler
        self._slot_table = slot_table
        self._begin = begin
        self._on_failure = on_failure

    def add(self, state: RequestState) -> None:
        """Queue the images of a request."""
        self._waiting.add(state)

    def discard(self, state: RequestState) -> None:
        """Remove a request, with its parked images."""
        self._waiting.discard(state)
        while state.parked:
            self._scheduler.discard_parked(state.parked.popleft())

    def admit(self) -> None:
        """Admit every image for which rows and slots are free, or can be taken from images of lower priority.

        Once an image finds no slot for its adapters, no later image with adapters is admitted before it, so that slots
        become free as the images that use them finish. Later images without adapters may pass it.
        """
        full: set[Size] = set()
        slots_are_short = False

        def is_possible(state: RequestState) -> bool:
            return state.size not in full and not (state.adapters and slots_are_short)

        while state := self._waiting.first(is_possible):
            for image in images_to_park(state, self._scheduler, self._slot_table):
                self._park(image)
            if not self._scheduler.fits(state):
                full.add(state.size)
            elif not self._begin_or_fail(state):
                slots_are_short = True

    def _park(self, image: ScheduledImage) -> None:
        """Take an image out of the steps, with its rows and slots, until it is admitted again."""
        self._scheduler.park(image)
        self._slot_table.release(image.state.adapters)
        image.state.parked.append(image)
        self._waiting.add(image.state)
        self.parkings += 1

    def _begin_or_fail(self, state: RequestState) -> bool:
        """Begin or resume a request's next image, or fail the request; return False if too few slots are free."""
        slots, is_new = None, not state.parked
        try:
            slots = self._slot_table.acquire(state.adapters)
            if slots is None:
                return False
            if is_new:
                self._begin(state, slots)
            else:
                self._resume(state, slots)
        except Exception as error:  # any, such as no memory for a slot or the latents: other requests continue
            if slots is not None:
                self._slot_table.release(state.adapters)
            self._on_failure(state, error)
        else:
            self._waiting.note_admission(state, is_new=is_new)
        return True

    def _resume(self, state: RequestState, slots: tuple[int, ...]) -> None:
        image = state.parked.popleft()
        image.denoising.adapters = state.uses_of(slots)
        self._scheduler.resume(image)
