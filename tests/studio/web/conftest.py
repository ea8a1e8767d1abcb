"""A visitor of the studio."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.app import create_app
from studio.config import StudioConfig
from tests.studio.web.visitors import HERE


@pytest.fixture
def visitor(tmp_path: Path) -> TestClient:
    """Return a client on this machine, of a studio whose service does not answer."""
    return TestClient(create_app(StudioConfig(home=tmp_path)), base_url=HERE, follow_redirects=False)
