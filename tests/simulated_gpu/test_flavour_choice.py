"""``--flavour auto`` on a machine with a GPU."""

import pytest

from longcat.model.device.probe import read_devices
from longcat.model.weights import Weights, WeightsState
from service.config import ModelConfig
from service.memory.flavour_choice import decide
from tests.simulated_gpu.device import TOTAL_BYTES

pytestmark = pytest.mark.simulated_gpu


def test_a_gpu_of_24_gib_gets_the_published_model_in_8_bits() -> None:
    device = read_devices()
    assert (device.gpu, device.gpu_bytes) == ("simulated", TOTAL_BYTES)
    decided = decide(ModelConfig(flavour="auto"), device, lambda: Weights(state=WeightsState.CACHED))
    assert decided.flavour == "final"
    assert decided.flavour_reason is not None
    assert "int8-torchao" in str(decided.flavour_reason)
