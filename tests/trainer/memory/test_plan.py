"""The memory plan against training: the counted bytes that autograd holds between forward and backward."""

import copy
import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longcat.errors import ConfigError
from longcat.model.flavour import Flavour
from longcat.model.loading import Components
from longcat.model.precision import Precision
from longcat.model.shape import image_tokens
from tests import ROOT
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.config.simpletuner.lycoris import LycorisConfig, Preset
from trainer.data.buckets import Bucket
from trainer.loop.optimizer import OptimizerSettings, make_optimizer
from trainer.loop.step import Batch, loss_of, positions
from trainer.memory.alternatives import alternatives, choose
from trainer.memory.forecast import forecast
from trainer.memory.plan import plan
from trainer.memory.workload import Workload
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject

TOLERANCE = 0.15


PRESET = {"target_module": ["LongCatImageAttention", "FeedForward"]}
LOKR = LycorisConfig.model_validate({"algo": "lokr", "linear_dim": 10000, "factor": 4, "apply_preset": PRESET})
WHOLE_LOKR = LOKR.model_copy(update={"apply_preset": Preset(target_module=("LongCatImageTransformer2DModel",))})
LOHA = LycorisConfig.model_validate({"algo": "loha", "linear_dim": 4, "apply_preset": PRESET})


def workload(flavour: Flavour, **changes: object) -> Workload:
    usual = {
        "flavour_folder": flavour.folder, "precision": Precision.NO_CHANGE, "text_encoder_precision": Precision.NO_CHANGE,
        "dtype": "float32", "lora_rank": 16, "lora_targets": "attention", "optimizer": "adamw", "ema": False, "batch": 1,
        "width_px": 128, "height_px": 128, "prompt_tokens": 32, "checkpointing": 0, "offload": False, "validation": False,
        "device": "cpu",
    }  # fmt: skip
    return Workload(**usual | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch": 4, "width_px": 192},
        {"checkpointing": 2, "batch": 2},
        {"lora_targets": "all-linear", "lora_rank": 32},
        {"lora_targets": "whole-transformer"},
        {"dtype": "bfloat16", "batch": 2},
        {"lora_dropout": 0.0, "lora_targets": "official"},
        {"use_dora": True, "batch": 2},
        {"lycoris": LOKR, "batch": 2},
        {"lycoris": LOKR.model_copy(update={"linear_dim": 4}), "dtype": "bfloat16"},
        {"lycoris": WHOLE_LOKR},
        {"lycoris": LOHA},
        {"lycoris": LOHA, "dtype": "bfloat16", "batch": 2},
        {"edits": True, "width_px": 192},
        {"edits": True, "batch": 2, "checkpointing": 2, "use_dora": True},
    ],
)
def test_planned_activations_are_those_autograd_keeps(
    model: Components, flavour: Flavour, changes: dict[str, object]
) -> None:
    load = workload(flavour, **changes)
    kept = kept_bytes(model, load)
    assert plan(load).activation_bytes == pytest.approx(kept, rel=TOLERANCE)


def test_with_every_block_checkpointed_one_block_comes_on_top(model: Components, flavour: Flavour) -> None:
    kept = kept_bytes(model, workload(flavour, batch=4, checkpointing=1))
    whole = kept_bytes(model, workload(flavour, batch=4))
    blocks = 2 + 4
    planned = plan(workload(flavour, batch=4, checkpointing=1)).activation_bytes
    assert kept + 0.8 * whole / blocks < planned < kept + 1.8 * whole / blocks  # blocks differ in size


@pytest.mark.parametrize("lycoris", [LOKR, WHOLE_LOKR, LOHA])
def test_the_matrices_of_lycoris_take_the_planned_bytes(
    model: Components, flavour: Flavour, lycoris: LycorisConfig
) -> None:
    given = {"model_flavour": "embedded", "lora_type": "lycoris", "lycoris_config": lycoris}
    parameters = inject(copy.deepcopy(model.transformer), select(TrainConfig.model_validate(given), LoraSettings))
    assert plan(workload(flavour, lycoris=lycoris)).adapter_bytes == sum(parameter.nbytes for parameter in parameters)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-schedulefree", "prodigy"])
@pytest.mark.parametrize("targets", ["attention", "official", "all-linear", "whole-transformer"])
def test_adapter_and_optimizer_take_the_planned_bytes(
    model: Components, flavour: Flavour, optimizer: str, targets: str
) -> None:
    transformer = copy.deepcopy(model.transformer)
    config = TrainConfig.model_validate({"model_flavour": "embedded", "optimizer": optimizer, "lora_targets": targets})
    parameters = inject(transformer, select(config, LoraSettings))
    made = make_optimizer(parameters, select(config, OptimizerSettings))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    made.step()
    state = sum(
        value.nbytes for held in made.state.values() for value in held.values() if torch.is_tensor(value) and value.ndim
    )
    planned = plan(workload(flavour, optimizer=optimizer, lora_targets=targets))
    assert planned.adapter_bytes == sum(parameter.nbytes for parameter in parameters)
    assert planned.optimizer_bytes >= state * 0.99
    assert (
        planned.optimizer_bytes <= state * 2.1
    )  # a schedule-free optimizer keeps one of its averages in the parameters


def test_a_model_that_edits_has_its_vision_tower_and_the_tokens_of_references_planned(
    edit_model: Components, edit_folder: Path
) -> None:
    plain, seeing = (
        plan(workload(edit_model.flavour, flavour_folder=edit_folder, edits=edits)) for edits in (False, True)
    )
    tower_bytes = sum(parameter.nbytes for parameter in edit_model.text_encoder.model.visual.parameters())
    assert seeing.text_encoder_bytes >= plain.text_encoder_bytes + tower_bytes
    assert seeing.denoising_bytes > plain.denoising_bytes
    planned = forecast(TrainConfig.model_validate({"model_flavour": "edit"}), gpu_bytes=80 * 2**30)
    assert "each with its reference" in planned.text()
    assert "vision tower" in planned.text()
    plain_bytes = forecast(TrainConfig.model_validate({"model_flavour": "final"}), gpu_bytes=80 * 2**30).plan.most_bytes
    assert planned.plan.most_bytes > plain_bytes


def test_the_base_is_as_large_as_its_weights(model: Components, flavour: Flavour) -> None:
    weights = sum(parameter.nbytes for parameter in model.transformer.parameters())
    assert plan(workload(flavour)).base_bytes == pytest.approx(weights, rel=0.02)


def test_each_way_to_save_memory_saves_some(flavour: Flavour) -> None:
    usual = workload(flavour, batch=4)
    for cheaper in (
        {"checkpointing": 1}, {"precision": Precision.INT8_TORCHAO}, {"lora_rank": 4}, {"batch": 1},
    ):  # fmt: skip
        assert plan(replace(usual, **cheaper)).peak_bytes["training"] < plan(usual).peak_bytes["training"], cheaper
    assert len({(p.workload.precision, p.workload.checkpointing) for p in alternatives(usual)}) > 6


def test_the_prediction_of_the_base_is_planned_for(flavour: Flavour) -> None:
    without, prior = plan(workload(flavour, batch=4)), plan(workload(flavour, batch=4, prior=True))
    assert "the base's own prediction" not in without.parts
    assert prior.parts["the base's own prediction"] == prior.prior_bytes > 0
    assert (
        without.peak_bytes["training"] >= prior.peak_bytes["prior preservation"] > prior.base_bytes + prior.prior_bytes
    )


def test_auto_chooses_the_fastest_setting_that_fits_or_raises(flavour: Flavour) -> None:
    auto = workload(flavour, precision="auto", checkpointing="auto", batch=4)
    assert choose(auto, 10 * 2**30).checkpointing == 0
    tight = choose(auto, int(plan(workload(flavour, batch=4)).most_bytes * 0.9))
    assert plan(tight).most_bytes < plan(workload(flavour, batch=4)).most_bytes
    with pytest.raises(
        ConfigError, match=r"caching latents takes .* vae_batch_size 4.*; lower vae_batch_size"
    ) as caught:
        choose(auto, 2**20)
    assert caught.value.problems[0].code == "caching_latents_does_not_fit"
    with pytest.raises(ConfigError) as caught:
        choose(replace(auto, vae_batch=1), 2**20)
    assert caught.value.problems[0].code == "loading_does_not_fit"


def kept_bytes(model: Components, load: Workload) -> int:
    """Return the bytes that a training forward keeps for its backward, weights excluded, each storage once."""
    dtype = getattr(torch, load.dtype)
    transformer = copy.deepcopy(model.transformer).to(dtype)
    given = {"model_flavour": "embedded", "lora_rank": load.lora_rank, "lora_targets": load.lora_targets}
    given |= {"lora_dropout": load.lora_dropout, "use_dora": load.use_dora}
    if load.lycoris is not None:
        given |= {"lora_type": "lycoris", "lycoris_config": load.lycoris}
    inject(transformer, select(TrainConfig.model_validate(given), LoraSettings))
    transformer.train()
    if load.checkpointing:
        checkpoint_blocks(transformer, every=int(load.checkpointing))
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*transformer.parameters(), *transformer.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = image_tokens(width_px=load.width_px, height_px=load.height_px)
    width = transformer.config.joint_attention_dim
    size = Bucket(width_px=load.width_px, height_px=load.height_px)
    text_ids, image_ids = positions(size, prompt_rows=load.prompt_rows, has_reference=load.edits)
    batch = Batch(
        noisy_BNC=torch.randn(load.batch, tokens, 64).to(dtype), target_BNC=torch.randn(load.batch, tokens, 64),
        sigma_B=torch.full((load.batch,), 0.5), embeds_BLJ=torch.randn(load.batch, load.prompt_rows, width).to(dtype),
        text_ids_L3=text_ids, image_ids_N3=image_ids, seed=0,
        reference_BNC=torch.randn(load.batch, tokens, 64).to(dtype) if load.edits else None,
    )  # fmt: skip
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(transformer, batch)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("name", "first"), [("quickstart.md", "| base and text"), ("quickstart.zh.md", "| 基础模型与文本")]
)
def test_the_quickstarts_figures_are_the_plans(name: str, first: str) -> None:
    """Every row begins with its precisions; only the last one trains without checkpointing."""
    lines = (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith(first)) + 2
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[begin:]))
    assert len(rows) == 4
    for row in rows:
        settings, figure, _ = (cell.strip() for cell in row.strip("|").split("|"))
        for precision in re.findall(r"`(.+?)`", settings):
            options = {
                "model_flavour": "final", "resolution": 1024, "lora_rank": 16, "base_model_precision": precision,
                "text_encoder_1_precision": precision, "gradient_checkpointing": row is not rows[-1],
                "gradient_checkpointing_interval": 1, "validation_resolution": "1024x1024",
            }  # fmt: skip
            planned = forecast(TrainConfig.model_validate(options), gpu_bytes=80 * 2**30).plan
            assert f"{planned.most_bytes / 2**30:.1f} GiB" == figure
