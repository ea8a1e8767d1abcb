"""The processes of a running server, by role."""

import time
from contextlib import suppress

import psutil

from tests.conftest import RunningServer
from tests.warm import FORK_SERVER


class Family:
    """The processes of a server. Roles are looked up at each access, because the engine process may be replaced."""

    def __init__(self, server: RunningServer) -> None:
        self.main = psutil.Process(server.process.pid)

    @property
    def all(self) -> list[psutil.Process]:
        """Return every process, including helpers of ``multiprocessing``."""
        return [self.main, *self.main.children(recursive=True)]

    @property
    def manager(self) -> psutil.Process:
        """Return the manager process, the first of the two forked from the main process."""
        return self._forked()[0]

    @property
    def http(self) -> psutil.Process:
        """Return the HTTP process, the second of the two."""
        return self._forked()[1]

    @property
    def fork_server(self) -> psutil.Process:
        """Return the process that engine processes are forked from, on a CPU."""
        (found,) = filter(is_fork_server, self.main.children())
        return found

    @property
    def engine(self) -> psutil.Process:
        """Return the engine process, the only child of the fork server."""
        (found,) = self.engines
        return found

    @property
    def engines(self) -> list[psutil.Process]:
        """Return the engine processes, the children of the fork server."""
        return self.fork_server.children()

    def _forked(self) -> list[psutil.Process]:
        deadline = time.monotonic() + 10
        while True:  # a process that was just forked or renamed may have another command line for a moment
            own = self.main.cmdline()
            children = [child for child in self.main.children() if child.cmdline() == own and not is_fork_server(child)]
            if len(children) >= 2 or time.monotonic() > deadline:
                return sorted(children, key=lambda child: child.pid)
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill the remaining processes."""
        with suppress(psutil.NoSuchProcess):
            for process in self.all:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def is_fork_server(process: psutil.Process) -> bool:
    """Return True for a process that engine processes are forked from."""
    return process.name() == FORK_SERVER or "multiprocessing.forkserver" in " ".join(process.cmdline())
