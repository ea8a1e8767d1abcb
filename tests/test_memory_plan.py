"""The memory plan against what training keeps: bytes that autograd holds between forward and backward, counted."""

import copy
from dataclasses import replace

import pytest
import torch

from longcat import latents
from longcat.errors import ConfigError
from longcat.flavour import Flavour
from longcat.loading import Components
from longcat.precision import Precision
from trainer.choice import alternatives, choose
from trainer.config import TrainConfig
from trainer.lora import inject
from trainer.memory import Workload, plan
from trainer.optimizer import make_optimizer
from trainer.recompute import checkpoint_blocks
from trainer.step import Batch, loss_of

TOLERANCE = 0.15


def workload(flavour: Flavour, **changes: object) -> Workload:
    usual = {
        "flavour_folder": flavour.folder, "precision": Precision.NO_CHANGE, "text_encoder_precision": Precision.NO_CHANGE,
        "dtype": "float32", "lora_rank": 16, "lora_targets": "attention", "optimizer": "adamw", "ema": False, "batch": 1,
        "width_px": 128, "height_px": 128, "prompt_tokens": 32, "checkpointing": 0, "offload": False, "validation": False,
        "device": "cpu",
    }  # fmt: skip
    return Workload(**usual | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch": 4, "width_px": 192},
        {"checkpointing": 2, "batch": 2},
        {"lora_targets": "all-linear", "lora_rank": 32},
        {"dtype": "bfloat16", "batch": 2},
        {"lora_dropout": 0.0, "lora_targets": "official"},
        {"use_dora": True, "batch": 2},
    ],
)
def test_activations_are_what_autograd_keeps(model: Components, flavour: Flavour, changes: dict[str, object]) -> None:
    wanted = workload(flavour, **changes)
    kept = kept_bytes(model, wanted)
    assert plan(wanted).activation_bytes == pytest.approx(kept, rel=TOLERANCE)


def test_with_every_block_checkpointed_one_block_comes_on_top(model: Components, flavour: Flavour) -> None:
    kept = kept_bytes(model, workload(flavour, batch=4, checkpointing=1))
    whole = kept_bytes(model, workload(flavour, batch=4))
    blocks = 2 + 4
    planned = plan(workload(flavour, batch=4, checkpointing=1)).activation_bytes
    assert kept + 0.8 * whole / blocks < planned < kept + 1.8 * whole / blocks  # blocks differ in size


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-schedulefree", "prodigy"])
@pytest.mark.parametrize("targets", ["attention", "official", "all-linear"])
def test_adapter_and_optimizer_are_what_they_take(
    model: Components, flavour: Flavour, optimizer: str, targets: str
) -> None:
    transformer = copy.deepcopy(model.transformer)
    config = TrainConfig.model_validate({"model_flavour": "embedded", "optimizer": optimizer, "lora_targets": targets})
    parameters = inject(transformer, config)
    made = make_optimizer(parameters, config)
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


def test_choosing_gives_up_as_little_as_it_must_and_says_when_nothing_fits(flavour: Flavour) -> None:
    auto = workload(flavour, precision="auto", checkpointing="auto", batch=4)
    assert choose(auto, 10 * 2**30).checkpointing == 0
    tight = choose(auto, int(plan(workload(flavour, batch=4)).most_bytes * 0.9))
    assert plan(tight).most_bytes < plan(workload(flavour, batch=4)).most_bytes
    with pytest.raises(ConfigError, match=r"caching latents takes .* vae_batch_size 4.*lower vae_batch_size"):
        choose(auto, 2**20)
    with pytest.raises(ConfigError, match=r"loading takes .*more memory"):
        choose(replace(auto, vae_batch=1), 2**20)


def kept_bytes(model: Components, wanted: Workload) -> int:
    """Bytes that a training forward leaves for its backward, weights aside, each storage once."""
    dtype = getattr(torch, wanted.dtype)
    transformer = copy.deepcopy(model.transformer).to(dtype)
    given = {"model_flavour": "embedded", "lora_rank": wanted.lora_rank, "lora_targets": wanted.lora_targets}
    given |= {"lora_dropout": wanted.lora_dropout, "use_dora": wanted.use_dora}
    inject(transformer, TrainConfig.model_validate(given))
    transformer.train()
    if wanted.checkpointing:
        checkpoint_blocks(transformer, every=int(wanted.checkpointing))
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*transformer.parameters(), *transformer.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = wanted.width_px * wanted.height_px // latents.TOKEN_PX**2
    width = transformer.config.joint_attention_dim
    batch = Batch(
        noisy_BNC=torch.randn(wanted.batch, tokens, 64).to(dtype), velocity_BNC=torch.randn(wanted.batch, tokens, 64),
        sigma_B=torch.full((wanted.batch,), 0.5), embeds_BLJ=torch.randn(wanted.batch, 32, width).to(dtype),
        text_ids_L3=latents.text_ids(32), seed=0,
        image_ids_N3=latents.image_ids(height_px=wanted.height_px, width_px=wanted.width_px, max_tokens=32),
    )  # fmt: skip
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(transformer, batch, dtype=dtype)
    return sum(storage.nbytes() for storage in kept.values())
