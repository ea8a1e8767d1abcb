"""The progress bar of a person who watches, and lines for a log that is read later. No torch."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from longcat.logs import tell

_LOG_SECONDS = 30.0
_log = logging.getLogger("lithograph.trainer")
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Bar:
    """One bar at a time, for whatever is counted at the moment."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: tqdm | None = None

    def show(self, what: str, done: int, total: int, figures: str = "") -> None:
        """``done`` of ``total``; another ``what`` is another bar."""
        if self._bar is None or what != self._what:
            self.close()
            self._what = what
            self._bar = tqdm(total=total, initial=done, desc=what, dynamic_ncols=True, bar_format=_FORMAT)
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave it as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines:
    """A line now and then, and one at the end."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LOG_SECONDS

    def show(self, what: str, done: int, total: int, figures: str = "") -> None:
        """As ``Bar.show``."""
        if done == total or time.monotonic() >= self._next:
            tell(_log, what, done=done, total=total, note=figures or None)
            self._next = time.monotonic() + _LOG_SECONDS


@contextmanager
def open_bar() -> Iterator[Bar]:
    """A bar on stderr; lines that are logged meanwhile go above it."""
    bar = Bar()
    with logging_redirect_tqdm():
        try:
            yield bar
        finally:
            bar.close()
