"""Attachment of the simulated device."""

import pytest

from tests.simulated_gpu import device


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Attach the device before the first test; without its library, these tests are left out by their marker."""
    if device.is_loaded():
        device.attach()
