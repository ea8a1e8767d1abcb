"""A terminal of the test's own, to see what a person would see."""

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
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    finally:
        os.close(master)
    assert process.wait() == 0, shown
    return shown.decode()
