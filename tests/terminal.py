"""A pseudoterminal, to test output as users see it."""

import os
import pty
import subprocess
import termios


def shown_on_a_terminal(*command: str) -> str:
    """Return a command's standard error on a terminal of 24 lines by 120 columns. The command must exit with 0."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    process = subprocess.Popen(command, stderr=slave)
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 4096):
            shown += piece
    except OSError:  # Linux' error if the other end is closed
        pass
    finally:
        os.close(master)
    assert process.wait() == 0, shown
    return shown.decode()
