import pytest

from longcat.adapter.modules import lora_targets
from longcat.model.loading import Components


@pytest.fixture
def targets(model: Components) -> dict[str, tuple[int, int]]:
    return lora_targets(model.transformer)
