"""Training pictures, and one finished run, for the tests of whole trainings."""

from pathlib import Path

import pytest

from tests.trainer.trainings import STATEFUL, train, write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six pictures with captions in both languages; two have another shape."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted, published run with every feature that has state."""
    output = tmp_path_factory.mktemp("finished") / "run"
    publish_to = (output.parent / "adapters").as_uri()
    done = train(pictures, output, environment={}, publish_to=publish_to, adapter_name="flat", **STATEFUL)
    assert done.returncode == 0, done.stderr
    return output
