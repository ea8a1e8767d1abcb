"""The start of LitServe's manager process, which holds the queues between the HTTP process and the engine processes."""

import os
import signal
from multiprocessing.managers import SyncManager

from longcat.process.parent import end_with_parent


def start_manager() -> SyncManager:
    """Fork the manager process. It ends with its parent, and passes SIGTERM on to it."""
    manager = SyncManager()
    manager.start(initializer=_begin)
    return manager


def _begin() -> None:
    """Run first in the manager process."""
    end_with_parent()

    def pass_on(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getppid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)  # requests that drain still need this process
