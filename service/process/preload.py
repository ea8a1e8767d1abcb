"""The imports of an engine process, for the fork server alone, which runs this module before it forks one.

Most of an engine's start is importing torch and the libraries on top of it; a process forked afterwards skips that.
Importing this module has an effect, unlike importing any other.
"""

import signal

from longcat.logs import silence_import_noise
from longcat.process.parent import kill_with_parent
from service.process.engine_start import ignore_ctrl_c


def _preload() -> None:
    kill_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all processes of a server: its engine may finish requests
    ignore_ctrl_c()
    silence_import_noise()
    import service.process.server
    import service.renderer  # noqa: F401


_preload()
