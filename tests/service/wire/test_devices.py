"""The list of devices of a server, and the engines that it means."""

import pytest

from longcat.errors import ConfigError
from service.config import ModelConfig, ServiceConfig

GPUS = ("cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("given", "devices", "names"),
    [
        (["0,1"], GPUS, GPUS),
        (["0", "1"], GPUS, GPUS),
        (["cuda:0, cuda:1"], GPUS, GPUS),
        (["3"], ("cuda:3",), ("cuda:3",)),
        (["cpu,cpu"], ("cpu", "cpu"), ("cpu:0", "cpu:1")),
        (["cpu"], ("cpu",), ("cpu",)),
    ],
)
def test_each_device_has_an_engine(given: list[str], devices: tuple[str, ...], names: tuple[str, ...]) -> None:
    config = ServiceConfig(model=ModelConfig(dtype="float32"), devices=given)
    assert tuple(engine.device for engine in config.engines) == devices
    assert {engine.dtype for engine in config.engines} == {"float32"}
    assert config.device_names == names


def test_without_a_list_there_is_one_engine() -> None:
    config = ServiceConfig(model=ModelConfig(device="cuda:1"))
    assert config.engines == (config.model,)
    assert config.device_names == ("cuda:1",)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["0,0"], "device_twice"),
        (["0,cuda:0"], "device_twice"),
        (["0,cpu"], "devices_of_two_kinds"),
        (["auto"], "devices_invalid"),
        (["0,"], "devices_invalid"),
        ([""], "devices_invalid"),
        (["-1"], "devices_invalid"),
        (["cuda"], "devices_invalid"),
        (["²"], "devices_invalid"),
        (["mps"], "devices_invalid"),
    ],
)
def test_other_lists_are_refused_with_the_reason(given: list[str], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServiceConfig(model=ModelConfig(), devices=given)
    assert [(problem.code, problem.field) for problem in caught.value.problems] == [(code, "devices")]


def test_one_device_and_a_list_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--device and --devices are both given") as caught:
        ServiceConfig(model=ModelConfig(device="cpu"), devices=["cpu,cpu"])
    assert caught.value.problems[0].code == "device_and_devices"
