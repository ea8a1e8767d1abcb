"""A denoising step of several images: one forward, or smaller ones where device memory runs out."""

import logging
import time
from collections.abc import Callable

from longcat.model.device.errors import free_memory, is_device_lost, is_out_of_memory
from longcat.sampling import denoise
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots
from service.engine.request_state import RequestState, ScheduledImage
from service.engine.scheduling.scheduler import Scheduler, rows_of
from service.engine.workers import device_time
from service.observability.timeline import StepInterval

log = logging.getLogger("lithograph")


class BatchStep:
    """The step of images of one size. An image whose step fails does so without the others."""

    def __init__(
        self,
        forward: Forward,
        slots: AdapterSlots,
        scheduler: Scheduler,
        *,
        on_failure: Callable[[RequestState, Exception], None],
    ) -> None:
        """``on_failure`` ends the request of an image whose step fails."""
        self.out_of_memory = 0
        """Forwards that ran out of the device's memory."""
        self.computed_rows = 0
        self.reused_rows = 0
        """Rows of steps that were not computed, because of step reuse."""
        self._forward = forward
        self._slots = slots
        self._scheduler = scheduler
        self._on_failure = on_failure

    def advance(self, images: list[ScheduledImage]) -> list[ScheduledImage]:
        """Advance images together, in smaller forwards if memory runs out; if that fails, each alone.

        Alone, an image fails without the others.
        """
        size, failure = images[0].state.size, self._attempt(images)
        while failure is not None and is_out_of_memory(failure):
            free_memory(failure)
            self.out_of_memory += 1
            rows = min(rows_of(images), self._scheduler.bound_of(size) or rows_of(images))
            if rows == 1:
                break
            self._scheduler.bound(size, rows // 2)
            log.warning(
                "a forward of %d rows at %dx%d px ran out of memory; it gets half from now on", rows, *size[::-1]
            )
            failure = self._attempt(images)
        if failure is None:
            return images
        if len(images) == 1 or is_device_lost(failure):
            self._on_failure(images[0].state, failure)
            return []
        log.warning("a step of %d images failed (%s); repeating it image by image", len(images), failure)
        return [advanced for image in images for advanced in self.advance([image])]

    def _attempt(self, images: list[ScheduledImage]) -> Exception | None:
        """Advance images together; return the exception that it raises, for a repetition outside its handler."""
        begin = time.monotonic()
        max_rows = self._scheduler.bound_of(images[0].state.size)
        try:
            rows = denoise.advance(self._forward, [image.denoising for image in images], self._slots, max_rows=max_rows)
            _record_step(images, rows, begin, device_time(self._forward.device))  # on a GPU, once the step is finished
            self.computed_rows += rows
            self.reused_rows += rows_of(images) - rows
        except Exception as error:  # any, such as out of memory or a non-finite latent
            return error
        return None


def _record_step(images: list[ScheduledImage], rows: int, begin: float, end: float) -> None:
    seconds_per_row = (end - begin) / rows_of(images)
    for image in images:
        timeline, own = image.state.timeline, len(image.denoising.contexts)
        timeline.add_step(pixel_steps=image.state.request.pixels_per_row * own, seconds=seconds_per_row * own)
        if timeline.keeps_steps:
            timeline.steps.append(
                StepInterval(begin=begin, end=end, picture=image.index, step=image.denoising.step, rows=rows)
            )
