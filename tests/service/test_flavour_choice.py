"""``--flavour auto``: the decision for each machine, and the weights that it depends on."""

import json
import shutil
from pathlib import Path

import pytest

from longcat.model.devices import DeviceFacts
from longcat.model.flavour import EMBEDDED_FOLDER
from longcat.model.precision import Offload, Precision
from longcat.model.weights import Weights, WeightsState, is_complete
from service.config import ModelConfig
from service.flavour_choice import decide, needed_bytes

GIB = 2**30
UNCHANGED, INT8 = ("no_change", "no_change"), ("int8-quanto", "int8-quanto")
GONE = WeightsState.UNREACHABLE


@pytest.mark.parametrize(
    ("gpu_gib", "state", "flavour", "precisions", "code"),
    [
        (None, WeightsState.CACHED, "embedded", UNCHANGED, "flavour_auto_without_gpu"),
        (16, WeightsState.CACHED, "embedded", UNCHANGED, "flavour_auto_gpu_too_small"),
        (24, WeightsState.CACHED, "final", INT8, "flavour_auto_final"),
        (80, WeightsState.FETCHABLE, "final", UNCHANGED, "flavour_auto_final"),
        (80, WeightsState.OFFLINE, "embedded", UNCHANGED, "flavour_auto_offline"),
        (80, GONE, "embedded", UNCHANGED, "flavour_auto_hub_unreachable"),
        (80, WeightsState.DISK_TOO_SMALL, "embedded", UNCHANGED, "flavour_auto_disk_too_small"),
    ],
)
def test_the_published_model_is_served_where_memory_and_weights_allow_it(
    gpu_gib: int | None, state: WeightsState, flavour: str, precisions: tuple[str, str], code: str
) -> None:
    device = DeviceFacts(gpu=gpu_gib and "H100", gpu_bytes=gpu_gib and gpu_gib * GIB, threads=2)
    decided = decide(ModelConfig(flavour="auto"), device, lambda: Weights(state=state))
    assert (decided.flavour, (decided.precision, decided.text_encoder_precision)) == (flavour, precisions)
    assert decided.flavour_reason is not None
    assert decided.flavour_reason.code == code
    assert str(decided.flavour_reason)


def test_a_given_precision_and_offloading_are_kept() -> None:
    device = DeviceFacts(gpu="GPU", gpu_bytes=23 * GIB, threads=2)

    def here() -> Weights:
        return Weights(state=WeightsState.CACHED)

    config = ModelConfig(flavour="auto", precision="int8-torchao")
    assert decide(config, device, here).flavour == "embedded"  # the text encoder stays as it is, which is too much
    offloaded = decide(config.model_copy(update={"offload": Offload.MODEL}), device, here)
    assert (offloaded.flavour, offloaded.precision) == ("final", "int8-torchao")
    assert offloaded.text_encoder_precision == "no_change"


def test_the_memory_that_is_asked_for_is_the_documented_one() -> None:
    def gib(precision: Precision, offload: Offload = Offload.NONE) -> float:
        return round(needed_bytes(precision, precision, offload) / GIB, 1)

    assert (gib(Precision.NO_CHANGE), gib(Precision.INT8_QUANTO)) == (34.3, 22.4)
    assert (
        gib(Precision.NO_CHANGE, Offload.GROUP)
        < gib(Precision.NO_CHANGE, Offload.MODEL)
        < gib(Precision.INT8_QUANTO) + 1
    )


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
