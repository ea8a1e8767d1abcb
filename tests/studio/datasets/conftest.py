"""An empty collection of datasets."""

from pathlib import Path

import pytest

from studio.datasets.datasets import Datasets


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    (tmp_path / "root").mkdir()
    return Datasets(tmp_path / "datasets", [tmp_path / "root"])
