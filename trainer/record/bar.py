"""A progress bar for a terminal, and progress lines for a log. No torch."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from longcat.logs import log_event

_LOG_SECONDS = 30.0
_log = logging.getLogger("lithograph.trainer")
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Bar:
    """One progress bar at a time, for the current activity."""

    def __init__(self) -> None:
        self._activity = ""
        self._bar: tqdm | None = None

    def show(self, activity: str, done: int, total: int, figures: str = "") -> None:
        """Show ``done`` of ``total``. A new activity begins a new bar."""
        if self._bar is None or activity != self._activity:
            self.close()
            self._activity = activity
            self._bar = tqdm(total=total, initial=done, desc=activity, dynamic_ncols=True, bar_format=_FORMAT)
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the bar and keep its last line on the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines:
    """A log line every 30 seconds, and one at the end of each activity."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LOG_SECONDS

    def show(self, activity: str, done: int, total: int, figures: str = "") -> None:
        """Log ``done`` of ``total``, as ``Bar.show``."""
        if done == total or time.monotonic() >= self._next:
            log_event(_log, activity, done=done, total=total, note=figures or None)
            self._next = time.monotonic() + _LOG_SECONDS


@contextmanager
def open_bar() -> Iterator[Bar]:
    """Open a bar on stderr. Log lines go above it."""
    bar = Bar()
    with logging_redirect_tqdm():
        try:
            yield bar
        finally:
            bar.close()
