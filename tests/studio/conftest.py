"""A Chromium for each file of browser tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.studio.browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched
