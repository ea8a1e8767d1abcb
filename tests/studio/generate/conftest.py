"""A studio that uses a service which runs already."""

from collections.abc import Iterator

import pytest

from tests.conftest import RunningServer
from tests.studio.browser import RunningStudio, running_studio


@pytest.fixture(scope="package")
def studio(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStudio]:
    """Run a studio for the browser tests of this folder."""
    with running_studio(tmp_path_factory.mktemp("studio") / "home", "--service-url", server.url) as running:
        yield running
