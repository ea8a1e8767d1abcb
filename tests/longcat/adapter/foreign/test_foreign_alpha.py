"""Alphas that trainers write as plain values in a file's header, and the assumption without one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longcat.adapter.foreign.reading import Foreign, read_foreign
from longcat.errors import AdapterError
from tests.longcat.adapter.foreign.test_reading import PLAIN, PREFIXED, Q, layers_of

Reader = Callable[..., Foreign]
KOHYA = {
    "ss_network_module": "networks.lora_flux", "ss_network_dim": "4", "ss_network_alpha": "1", "ss_network_args": "null",
    "ss_tag_frequency": json.dumps({"img": {"alpha": 7, "r": 3, "lora": 2}}), "modelspec.architecture": "flux-1-dev/lora",
    "modelspec.title": "alpha 9",
}  # fmt: skip


@pytest.fixture
def read(targets: dict[str, tuple[int, int]], tmp_path: Path) -> Reader:
    def read(header: dict[str, str], tensors: dict[str, Tensor] | None = None, rank: int = 4) -> Foreign:
        layers = layers_of(PREFIXED, rank=rank) if tensors is None else tensors
        save_file(layers, tmp_path / "a.safetensors", metadata={"format": "pt"} | header)
        return read_foreign(tmp_path / "a.safetensors", targets)

    return read


@pytest.mark.parametrize(
    ("header", "alpha"),
    [
        ({"alpha": "64"}, 64),
        ({"alpha": "64.0", "rank": "4"}, 64),
        ({"lora_alpha": "64", "r": "4"}, 64),
        ({"lora.alpha": "2", "lora.rank": "4"}, 2),
        ({"transformer.lora_alpha": "2", "text_encoder.lora_alpha": "9", "te_alpha": "9", "conv_alpha": "9"}, 2),
        ({"ss_network_alpha": "1"}, 1),
        (KOHYA, 1),
        ({"networkAlpha": "8", "networkDim": "4"}, 8),
        ({"network-alpha": "0.5"}, 0.5),
        ({"lora_alpha": '"16"'}, 16),
        ({"lora_alpha": "1e1"}, 10),
        ({"lora_alpha": "8", "alpha": "8", "network_alpha": "8.0"}, 8),
        ({"lora_alpha": "4", "use_rslora": "True"}, 8),
        ({"ss_network_args": json.dumps({"network_alpha": "2", "conv_alpha": 1})}, 2),
        ({"lora_config": json.dumps({"rank": 4, "alpha": 12})}, 12),
        ({"config": json.dumps({"network": {"type": "lora", "lora_rank": 4, "lora_alpha": 6}})}, 6),
        ({"lora_adapter_metadata": json.dumps({"alpha": 64, "rank": 4})}, 64),
        ({"lora_adapter_metadata": json.dumps({"r": 4, "alpha": 64})}, 64),
        ({"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": "64"})}, 64),
        ({"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 3}), "alpha": "64"}, 3),
    ],
)
def test_an_alpha_in_the_header_is_honoured(read: Reader, header: dict[str, str], alpha: float) -> None:
    foreign = read(header)
    assert (foreign.weights.alpha, foreign.has_alpha, foreign.warnings) == (alpha, True, ())


@pytest.mark.parametrize(
    "value", ["None", "Dynamic", "", "true", "0", "-1", "nan", "inf", "1e400", "1e300", "1e-320", "1" * 400]
)
@pytest.mark.parametrize("key", ["ss_network_alpha", "lora_alpha"])
def test_a_value_that_is_no_alpha_is_a_warning(read: Reader, key: str, value: str) -> None:
    foreign = read({key: value})
    assert (foreign.weights.alpha, foreign.has_alpha) == (4, False)
    (warning,) = foreign.warnings
    assert warning.code == "adapter_alpha_unusable"
    assert warning.problem.startswith(f"its header gives {key} ")
    assert "the rank was assumed" in warning.problem


@pytest.mark.parametrize(
    "value",
    [True, 10**400, 10**5000, [1], None, "x" * 300],
    ids=["true", "10**400", "10**5000", "list", "null", "long"],
)
def test_a_json_value_that_is_no_alpha_is_a_warning(read: Reader, value: object) -> None:
    text = '{"alpha": 1' + "0" * 5000 + "}" if value == 10**5000 else json.dumps({"alpha": value})
    foreign = read({"lora_config": text})
    assert (foreign.weights.alpha, foreign.has_alpha) == (4, False)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "{", "1" * 5000])
def test_a_header_that_is_no_json_is_passed_over(read: Reader, text: str) -> None:
    assert read({"config": text, "alpha": "2"}).weights.alpha == 2
    with pytest.raises(AdapterError, match="lora_adapter_metadata is not JSON"):
        read({"lora_adapter_metadata": text if text[0] != "1" else "{"})


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"alpha": "64", "lora_alpha": "32"}, "adapter_header_alphas_differ"),
        ({"lora_alpha": "64", "r": "16"}, "adapter_header_rank_contradicts"),
        ({"ss_network_alpha": "8", "ss_network_dim": "16"}, "adapter_header_rank_contradicts"),
    ],
)
def test_values_that_contradict_are_refused(read: Reader, header: dict[str, str], code: str) -> None:
    with pytest.raises(AdapterError) as caught:
        read(header)
    assert (caught.value.problems[0].code, caught.value.problems[0].field) == (code, "file")


def test_tensors_count_before_the_header(read: Reader) -> None:
    named = {f"lora_unet_{name.replace('.', '_')}": widths for name, widths in PLAIN.items()}
    tensors = layers_of(named, down="lora_down", up="lora_up") | {f"{name}.alpha": torch.tensor(2.0) for name in named}
    for values in (
        {"ss_network_alpha": "1", "ss_network_dim": "4"},
        {"ss_network_alpha": "Dynamic"},
        {"ss_network_dim": "64"},
    ):
        foreign = read(values, tensors)
        assert (foreign.weights.alpha, foreign.has_alpha, foreign.warnings) == (2, True, ())


def test_layers_of_several_ranks_share_the_alpha_of_the_header(read: Reader) -> None:
    names = [*PREFIXED]
    tensors = layers_of({names[0]: PREFIXED[names[0]]}, rank=2) | layers_of({names[1]: PREFIXED[names[1]]}, rank=4)
    foreign = read({"ss_network_alpha": "2", "ss_network_dim": "4"}, tensors)
    for name, rank in zip(names, (2, 4), strict=True):
        layer = foreign.weights.layers[name.removeprefix("transformer.")]
        update = layer.up @ layer.down * (foreign.weights.alpha / layer.rank)
        expected = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] * (2 / rank)
        torch.testing.assert_close(update, expected)


@pytest.mark.parametrize("alpha", [1e300, 1e-320, float("inf"), -1.0, 0.0, True, 10**18])
def test_alphas_of_tensors_are_in_range(read: Reader, alpha: float) -> None:
    kind = torch.bool if alpha is True else torch.int64 if isinstance(alpha, int) else torch.float64
    with pytest.raises(AdapterError) as caught:
        read({}, layers_of(PREFIXED) | {f"transformer.{Q}.alpha": torch.tensor(alpha, dtype=kind)})
    assert caught.value.problems[0].code == "adapter_alpha_invalid"


@pytest.mark.parametrize("alpha", [True, 1e300, 1e-320, 10**400, "x", None])
@pytest.mark.parametrize("field", ["lora_alpha", "alpha_pattern"])
def test_alphas_of_peft_are_in_range(read: Reader, field: str, alpha: object) -> None:
    value = {"to_q": alpha} if field == "alpha_pattern" else alpha
    with pytest.raises(AdapterError) as caught:
        read({"lora_adapter_metadata": json.dumps({"r": 4, field: value})})
    assert caught.value.problems[0].code == "peft_config_invalid"


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_an_update_of_zeros_is_a_warning(read: Reader, side: str) -> None:
    tensors = {name: tensor * (side not in name) for name, tensor in layers_of(PREFIXED).items()}
    (warning,) = read({"alpha": "4"}, tensors).warnings
    assert warning.code == "adapter_changes_nothing"
    tensors[f"transformer.{Q}.{side}.weight"][0] = 1
    assert read({"alpha": "4"}, tensors).warnings == ()
