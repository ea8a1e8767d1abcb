"""The choice of images that are parked, so that an image of high priority is admitted at once.

A parked image keeps its latents, and gives back its rows and adapter slots until it is admitted again. Its picture is the
same: a step depends on nothing but the image's own state.
"""

from service.engine.request_state import RequestState, ScheduledImage
from service.engine.scheduling.scheduler import Scheduler
from service.engine.slot_table import SlotTable
from service.wire.schema import HIGHEST, rank_of

MOST_PARKINGS = 3
"""Times that an image is parked, at most."""


def images_to_park(state: RequestState, scheduler: Scheduler, slot_table: SlotTable) -> list[ScheduledImage]:
    """Return the images to park before an image of this request is admitted.

    None if it can be admitted without parking, has no high priority, or cannot be admitted even with it. Images of lowest
    priority are parked first, then those that were parked least often, then those that came last.
    """
    if state.rank < rank_of(HIGHEST):
        return []
    candidates = sorted(
        (image for image in scheduler.images if image.state.rank < state.rank and image.parkings < MOST_PARKINGS),
        key=lambda image: (image.state.rank, image.parkings, -image.state.number, -image.index),
    )
    parked: list[ScheduledImage] = []
    while True:
        if not scheduler.fits(state, without=parked):
            useful = [image for image in candidates if image.state.size == state.size] or candidates
        elif not slot_table.has_slots(state.adapters, without=[image.state.adapters for image in parked]):
            useful = [image for image in candidates if image.state.adapters]
        else:
            return parked
        if not useful:
            return []
        parked.append(useful[0])
        candidates.remove(useful[0])
