"""Copies to a GPU beside its computation, on a stream of their own. On other devices, copies are made at once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class CopyStream:
    """The stream of one device. One thread at a time may use it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.Stream(device=device) if device.type == "cuda" else None

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Submit the operations within the context to the stream, after all that was submitted to the device so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.accelerator.current_stream(self._device))
        with self._stream:
            yield

    def copied(self) -> torch.Event | None:
        """Return the event of all copies that were submitted so far; None if they are finished."""
        return None if self._stream is None else self._stream.record_event()

    def wait(self, event: torch.Event) -> None:
        """Let the operations that this thread submits from now on wait for an event; the host does not wait."""
        torch.accelerator.current_stream(self._device).wait_event(event)
