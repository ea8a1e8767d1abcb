from collections.abc import Iterator

import pytest

from tests.conftest import RunningServer, serve

SECONDS = ("--header-seconds", "2", "--body-seconds", "2", "--keep-alive-seconds", "3", "--max-connections", "20")


@pytest.fixture(scope="package")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return a server with short time limits."""
    with serve(tmp_path_factory.mktemp("strict"), *SECONDS) as running:
        yield running
