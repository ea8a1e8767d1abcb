"""The service under fuzzing: started by the tests, or by the campaign."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.model.flavour import resolve
from longcat.storage.opening import open_storage
from tests.conftest import RunningServer, serve
from tests.fuzz.values.adapters import small
from tests.service.family import Family

URL_VARIABLE = "LITHOGRAPH_FUZZ_URL"
HTTP_PROCESS_VARIABLE = "LITHOGRAPH_FUZZ_HTTP_PROCESS"
ADMIN_KEY = "an-admin-key-of-the-fuzz"


def server_options(folder: Path) -> list[str]:
    """Return the options of a server with adapters, an admin key and a small queue, in a directory of its own."""
    return ["--adapters", (folder / "adapters").as_uri(), "--admin-key", ADMIN_KEY]


def publish_adapter(folder: Path) -> None:
    """Publish ``ink`` to the storage of ``server_options``."""
    storage, weights = open_storage((folder / "adapters").as_uri()), small()
    publish_lora(storage, "ink", draft_of(weights, resolve("embedded"), origin="trained"), weights)
    set_latest(storage, "ink", 1)


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Return the service's URL and the id of its HTTP process."""
    if (url := os.environ.get(URL_VARIABLE)) is not None:
        yield url, int(os.environ[HTTP_PROCESS_VARIABLE])
        return
    folder = tmp_path_factory.mktemp("service")
    publish_adapter(folder)
    running: RunningServer
    with serve(folder, *server_options(folder)) as running:
        yield running.url, Family(running).http.pid


@pytest.fixture(scope="session")
def service(target: tuple[str, int]) -> str:
    """Return the service's URL."""
    return target[0]


@pytest.fixture(scope="session")
def loop_clock(target: tuple[str, int]) -> Callable[[], float]:
    """Return a clock of the CPU time of the service's event loop in seconds, to 10 ms."""
    process = psutil.Process(target[1])

    def read() -> float:
        loop = next(thread for thread in process.threads() if thread.id == process.pid)
        return float(loop.user_time + loop.system_time)

    return read
