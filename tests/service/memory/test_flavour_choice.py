"""``--flavour auto``: the decision for each machine, and the weights that it depends on."""

import json
import shutil
from pathlib import Path

import pytest

from longcat.model.device.probe import DeviceFacts
from longcat.model.flavour import EMBEDDED_FOLDER
from longcat.model.weights import Weights, WeightsState, is_complete
from service.config import ModelConfig
from service.memory.flavour_choice import decide

GIB = 2**30
GONE = WeightsState.UNREACHABLE


@pytest.mark.parametrize(
    ("gpu_gib", "state", "flavour", "code"),
    [
        (None, WeightsState.CACHED, "embedded", "flavour_auto_without_gpu"),
        (8, WeightsState.CACHED, "embedded", "flavour_auto_gpu_too_small"),
        (16, WeightsState.CACHED, "final", "flavour_auto_final"),
        (24, WeightsState.CACHED, "final", "flavour_auto_final"),
        (80, WeightsState.FETCHABLE, "final", "flavour_auto_final"),
        (80, WeightsState.OFFLINE, "embedded", "flavour_auto_offline"),
        (80, GONE, "embedded", "flavour_auto_hub_unreachable"),
        (80, WeightsState.DISK_TOO_SMALL, "embedded", "flavour_auto_disk_too_small"),
    ],
)
def test_the_published_model_is_served_where_memory_and_weights_allow_it(
    gpu_gib: int | None, state: WeightsState, flavour: str, code: str
) -> None:
    device = DeviceFacts(gpu=gpu_gib and "H100", gpu_bytes=gpu_gib and gpu_gib * GIB, threads=2)
    decided = decide(ModelConfig(flavour="auto"), device, lambda: Weights(state=state))
    assert (decided.flavour, decided.precision) == (flavour, "auto")  # the engine decides by the memory that is free
    assert decided.flavour_reason is not None
    assert decided.flavour_reason.code == code
    assert str(decided.flavour_reason)


def test_a_given_precision_and_offloading_are_kept() -> None:
    device = DeviceFacts(gpu="GPU", gpu_bytes=23 * GIB, threads=2)

    def here() -> Weights:
        return Weights(state=WeightsState.CACHED)

    config = ModelConfig(flavour="auto", precision="no_change", text_encoder_precision="no_change", offload="none")
    assert decide(config, device, here).flavour == "embedded"
    grouped = decide(config.model_copy(update={"offload": "group"}), device, here)
    assert (grouped.flavour, grouped.precision, grouped.offload) == ("final", "no_change", "group")


def test_an_interrupted_download_is_not_taken_for_the_weights(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, copy)
    assert is_complete(copy)
    index = copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "diffusion_pytorch_model.safetensors", "b": "second.safetensors"}})
    )
    assert not is_complete(copy)
    (copy / "transformer" / "second.safetensors").touch()
    assert is_complete(copy)
    shutil.rmtree(copy / "vae")
    assert not is_complete(copy)
