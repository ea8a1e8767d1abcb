"""The devices of the studio's machine, found out beside its pages."""

from studio.training.devices import LocalDevices
from tests.studio.generate.test_pages import wait_for


def test_a_studio_that_is_closed_ends_its_probe() -> None:
    devices = LocalDevices()
    devices.start()
    wait_for(lambda: devices._probe is not None)
    devices.close()
    assert devices._probe is not None
    assert devices._probe.returncode == -9
