import pytest
import torch

from longcat.errors import DeviceError, PrecisionError
from longcat.model.device.choice import parse_device, parse_dtype
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.model.precision import Offload, Precision, parse_precision
from longcat.model.quantized.quantize import check_precision, quantize_base
from longcat.sampling import denoise, latents
from tests.longcat.sampling.test_denoise import begin, encode, finish

QUANTIZED = [precision for precision in Precision if precision is not Precision.NO_CHANGE]
# Relative error of one forward against bfloat16 weights, with a margin for the smallest model.
LARGEST_ERROR = {
    Precision.INT8_QUANTO: 0.02,
    Precision.INT4_QUANTO: 0.25,
    Precision.FP8_QUANTO: 0.08,
    Precision.INT8_TORCHAO: 0.02,
    Precision.FP8_TORCHAO: 0.08,
}
CPU = torch.device("cpu")


def velocity(model: Components, hidden: torch.Tensor) -> torch.Tensor:
    return model.transformer(
        hidden_states=hidden,
        encoder_hidden_states=encode(model, "a red apple"),
        timestep=torch.tensor([0.5], dtype=model.dtype),
        txt_ids=latents.text_ids(32),
        img_ids=latents.image_ids(height_px=128, width_px=128, max_tokens=32),
        return_dict=False,
    )[0]


@pytest.mark.heavy
@pytest.mark.parametrize("precision", QUANTIZED)
def test_quantized_bases_draw_nearly_the_same_in_less_memory(flavour: Flavour, precision: Precision) -> None:
    whole = load(flavour, device="cpu", dtype="bfloat16")
    small = load(flavour, device="cpu", dtype="bfloat16", precision=precision)
    hidden = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        expected, actual = velocity(whole, hidden).float(), velocity(small, hidden).float()
    assert 0 < (actual - expected).norm() / expected.norm() < LARGEST_ERROR[precision]
    picture = begin(small, steps=1)
    finish(small, picture)
    assert denoise.decode(small.vae, picture).std() > 0


@pytest.mark.parametrize("precision", QUANTIZED)
def test_gradients_flow_through_a_base_quantized_for_training(flavour: Flavour, precision: Precision) -> None:
    model = load(flavour, device="cpu", dtype="bfloat16")
    count = quantize_base(model.transformer, precision, device=CPU, training=True)
    assert count == 2 * 14 + 4 * 6
    hidden = torch.randn(1, 64, 64, dtype=torch.bfloat16, requires_grad=True)
    velocity(model, hidden).float().square().mean().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().max() > 0


def test_a_quantized_text_encoder_still_separates_prompts(flavour: Flavour) -> None:
    whole = load(flavour, device="cpu", dtype="bfloat16")
    small = load(flavour, device="cpu", dtype="bfloat16", text_encoder_precision=Precision.INT8_TORCHAO)
    apple, same, other = (encode(m, p) for m, p in ((whole, "苹果"), (small, "苹果"), (small, "一只猫")))
    assert (same - apple).norm() < 0.1 * (other - apple).norm()


@pytest.mark.parametrize("name", ["int4-torchao", "int2-quanto", "nf4-bnb", "int9"])
def test_unsupported_precisions_are_rejected_with_the_one_to_use(name: str) -> None:
    with pytest.raises(PrecisionError, match=r"use .*int"):
        parse_precision(name)


def test_apple_gpus_have_no_fp8() -> None:
    with pytest.raises(PrecisionError, match="int8-quanto"):
        check_precision(Precision.FP8_TORCHAO, device=torch.device("mps"))


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_is_float16_on_gpus_that_compute_no_bfloat16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert parse_dtype("auto", torch.device("cuda")) is dtype


def test_devices_that_are_not_there_are_refused(flavour: Flavour) -> None:
    assert parse_dtype("auto", CPU) is torch.float32
    assert parse_dtype("auto", torch.device("cuda")) is torch.bfloat16
    missing = f"cuda:{torch.cuda.device_count()}"
    for name, remedy in ((missing, "use cpu or another device"), ("gpu", "use auto, cpu"), ("meta", "use auto, cpu")):
        with pytest.raises(DeviceError, match=remedy):
            parse_device(name)
    with pytest.raises(DeviceError, match="use auto"):
        parse_dtype("int8", CPU)
    with pytest.raises(DeviceError, match="use none"):
        load(flavour, device="cpu", offload=Offload.MODEL)
