"""The plan of serving against full-size models without data, and the settings that are chosen for cards of any size."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, LongCatImageTransformer2DModel
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.errors import ConfigError, PrecisionError
from longcat.model.flavour import PUBLISHED_FOLDER, Description
from longcat.model.memory.device import usable_bytes
from longcat.model.precision import Offload, Precision
from longcat.model.published.models import ModelSettings
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots
from service.memory.choice import GivenSettings, check_format, choose
from service.memory.plan import ServingPlan, plan
from service.memory.settings import workload_of
from tests.conftest import run_lithograph
from tests.service.memory.meta import peak_of

META = torch.device("meta")
BF16 = torch.bfloat16
WORKLOAD = workload_of(
    Description(folder=PUBLISHED_FOLDER, settings=ModelSettings()), dtype="bfloat16", has_adapters=True, max_pixels=None
)

EDITS = replace(WORKLOAD, edits=True, rewrites=False)


@cache
def transformer() -> LongCatImageTransformer2DModel:
    config = json.loads((PUBLISHED_FOLDER / "transformer" / "config.json").read_text())
    with META:
        return LongCatImageTransformer2DModel(**config).to(BF16).requires_grad_(False)


def nbytes(module: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def test_weights_and_slots_are_those_of_the_full_size_model() -> None:
    made = plan(WORKLOAD)
    config = json.loads((PUBLISHED_FOLDER / "vae" / "config.json").read_text())
    with META:
        vae = AutoencoderKL(
            **config, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            use_quant_conv=False, use_post_quant_conv=False,
        ).to(BF16)  # fmt: skip
    slots = AdapterSlots(transformer(), count=8, rank=64, device=META, dtype=BF16)
    assert made.transformer_bytes == pytest.approx(nbytes(transformer()), rel=1e-3)
    assert made.vae_bytes == pytest.approx(nbytes(vae), rel=1e-3)
    assert made.slot_bytes == pytest.approx(slots.buffers.nbytes, rel=1e-3)


@pytest.mark.parametrize(("side_px", "rows"), [(512, 12), (1024, 1), (1024, 12), (2048, 2)])
def test_steps_take_what_is_planned(side_px: int, rows: int) -> None:
    model = transformer()
    forward = Forward(model, META)
    rope = forward.rope(height_px=side_px, width_px=side_px, prompt_rows=512)
    inputs = (
        torch.empty(rows, (side_px // 16) ** 2, 64, device=META, dtype=BF16),
        torch.empty(rows, 512, model.inner_dim, device=META, dtype=BF16),
        torch.empty(rows, 182 * model.inner_dim, device=META, dtype=BF16),
    )
    slots = AdapterSlots(model, count=8, rank=64, device=META, dtype=BF16)
    for slot in range(8):
        slots.load(slot, lora_of(model, rank=64))
    updates = slots.gather([((row % 8, 1.0),) for row in range(rows)])
    planned = rows * plan(WORKLOAD).row_bytes(width_px=side_px, height_px=side_px)
    assert planned == pytest.approx(peak_of(lambda: forward(*inputs, rope, updates)), rel=0.03)


def test_the_plan_of_editing_counts_the_vision_tower_and_the_tokens_of_the_reference() -> None:
    made = plan(EDITS)
    config = Qwen2_5_VLConfig(**json.loads((PUBLISHED_FOLDER / "text_encoder" / "config.json").read_text()))
    config.vision_config.out_hidden_size = config.text_config.hidden_size
    with META:
        tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config, dtype=BF16)
    assert made.vision_bytes == pytest.approx(nbytes(tower), rel=1e-3)
    assert plan(WORKLOAD).vision_bytes == 0
    model = transformer()
    prompt_rows = 512 + 2 + 18 * 18
    forward = Forward(model, META)
    rope = forward.rope(height_px=1024, width_px=1024, prompt_rows=prompt_rows, has_reference=True)
    assert rope.shape[0] == prompt_rows + 2 * 4096
    inputs = (
        torch.empty(2, 2 * 4096, 64, device=META, dtype=BF16),
        torch.empty(2, prompt_rows, model.inner_dim, device=META, dtype=BF16),
        torch.empty(2, 182 * model.inner_dim, device=META, dtype=BF16),
    )
    planned = 2 * plan(replace(EDITS, slots=0)).row_bytes(width_px=1024, height_px=1024)
    assert planned == pytest.approx(peak_of(lambda: forward(*inputs, rope)), rel=0.03)


@pytest.mark.parametrize("flavour", ["edit", "edit-turbo"])
def test_the_plan_of_editing_is_shown_without_weights(tmp_path: Path, flavour: str) -> None:
    done = run_lithograph("serve", "--plan", "--json", "--gpu-gib", "79", "--flavour", flavour, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = json.loads(done.stdout)["parts"]
    assert parts["vision tower"] == plan(EDITS).vision_bytes
    assert parts["a step of 12 rows at 1024 px"] == plan(replace(EDITS, slots=0)).step_bytes


def lora_of(model: LongCatImageTransformer2DModel, *, rank: int) -> LoraWeights:
    layers = {
        name: LoraLayer(torch.empty(rank, width_in, device=META), torch.empty(width_out, rank, device=META))
        for name, (width_in, width_out) in lora_targets(model).items()
    }
    return LoraWeights(alpha=rank, layers=layers)


def choice(gib: float, **given: object) -> ServingPlan:
    made = choose(GivenSettings(**given), WORKLOAD, usable_bytes(int(gib * 2**30)))  # type: ignore[arg-type]
    assert made.fits
    assert made.plan.most_bytes <= usable_bytes(int(gib * 2**30))
    return made.plan


def test_common_gpus_are_served_without_options() -> None:
    small, middle, large = (choice(gib).workload for gib in (15.6, 23.5, 79.2))
    assert (small.precision, small.text_encoder_precision, small.offload) == ("int8-torchao", "int8-torchao", "model")
    assert (middle.precision, middle.text_encoder_precision, middle.offload) == ("int8-torchao", "int8-torchao", "none")
    assert (large.precision, large.text_encoder_precision, large.offload) == ("no_change", "no_change", "none")
    assert min(load.rows for load in (small, middle, large)) >= 4
    assert (large.rows, large.slots, large.rank) == (12, 8, 64)


def test_explicit_settings_win() -> None:
    given = choice(79, precision=Precision.FP8_TORCHAO, offload=Offload.MODEL, rows=5, slots=6, rank=16).workload
    assert (given.precision, given.offload) == (Precision.FP8_TORCHAO, Offload.MODEL)
    assert (given.rows, given.slots, given.rank) == (5, 6, 16)
    tight = choose(GivenSettings(precision=Precision.INT8_TORCHAO, rows=500), WORKLOAD, usable_bytes(24 * 2**30))
    assert tight.plan.workload.rows == 500
    assert not tight.fits  # its requests wait for memory


def test_what_no_setting_fits_is_refused_before_loading() -> None:
    with pytest.raises(ConfigError) as raised:
        choose(GivenSettings(offload=Offload.NONE, precision=Precision.NO_CHANGE), WORKLOAD, usable_bytes(16 * 2**30))
    assert raised.value.problems[0].code == "serving_does_not_fit"
    with pytest.raises(PrecisionError, match="int8-torchao"):
        check_format(GivenSettings(text_encoder_precision=Precision.INT4_QUANTO))


def test_the_plan_is_shown_without_weights(tmp_path: Path) -> None:
    done = run_lithograph("serve", "--plan", "--json", "--gpu-gib", "24", "--flavour", "final", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["fits"]
    assert printed["settings"]["precision"] == "int8-torchao"
    assert printed["most_bytes"] == max(printed["phases"].values()) <= printed["usable_bytes"]
    assert list(tmp_path.iterdir()) == []
