import copy
from pathlib import Path

import pytest
import torch
from diffusers import LongCatImageTransformer2DModel

from longcat.adapter.modules import linear_modules
from longcat.adapter.weights.file import save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError, ConfigError
from longcat.model.flavour import describe
from longcat.model.loading import Components
from longcat.model.memory.weights import read_transformer
from longcat.sampling.latents import image_ids, text_ids
from tests.longcat.adapter.weights.test_dora import NOISE, velocity
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_layers_beside_blocks import PROMPT, served_velocity
from tests.longcat.sampling.test_slots import filled_slots
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.config.targets import check_fit, lora_targets
from trainer.memory.forecast import forecast
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject, lora_layers, weights_of


def settings(**changes: object) -> LoraSettings:
    config = TrainConfig.model_validate({"model_flavour": "embedded", **changes})
    return select(config, LoraSettings)


@pytest.fixture
def transformer(model: Components) -> LongCatImageTransformer2DModel:
    return copy.deepcopy(model.transformer)


def test_targets_are_those_of_simpletuner_and_of_the_official_trainer(
    transformer: LongCatImageTransformer2DModel,
) -> None:
    # Two double and four single blocks here. At full size, 10 and 20, the same rules give 100 and 180 modules.
    double, single = 2, 4
    attention = lora_targets(linear_modules(transformer), "attention")
    assert len(attention) == double * 4 + single * 3
    assert 10 * 4 + 20 * 3 == 100
    official = lora_targets(linear_modules(transformer), "official")
    assert len(official) == double * 12 + single * 3
    assert 10 * 12 + 20 * 3 == 180
    assert len(lora_targets(linear_modules(transformer), "all-linear")) == double * 12 + single * 5
    whole = lora_targets(linear_modules(transformer), "whole-transformer")
    assert len(whole) == double * (12 + 2) + single * (5 + 1) + 6
    assert {"x_embedder", "proj_out", "norm_out.linear", "single_transformer_blocks.3.norm.linear"} < set(whole)
    assert len(lora_targets(linear_modules(transformer), ["proj_out"])) == single  # of the blocks, as ever
    assert lora_targets(linear_modules(transformer), ["transformer.proj_out", "x_embedder"]) == [
        "proj_out",
        "x_embedder",
    ]
    assert len(lora_targets(linear_modules(transformer), ["norm1.linear"])) == double
    assert lora_targets(linear_modules(transformer), ["proj_mlp"]) == [
        f"single_transformer_blocks.{i}.proj_mlp" for i in range(single)
    ]
    with pytest.raises(ConfigError, match=r"q_proj: no layer .*attn\.to_q"):
        lora_targets(linear_modules(transformer), ["q_proj"])


@pytest.mark.parametrize("targets", ["attention", ["x_embedder"]])
def test_a_rank_above_the_width_of_its_layers_is_refused(targets: object) -> None:
    model = describe("embedded")
    widths = {layer.name: (layer.width_in, layer.width_out) for layer in read_transformer(model.folder).linears()}
    most = max(
        min(widths[name]) for name in lora_targets(widths, targets if isinstance(targets, str) else ("x_embedder",))
    )
    fitting = {"model_flavour": "embedded", "lora_targets": targets, "lora_rank": most}
    check_fit(TrainConfig.model_validate(fitting), model.folder)
    for rank in (most + 1, 2**31 - 1):
        with pytest.raises(
            ConfigError, match=f"lora_rank = {rank}: more than the width .* {most}; give at most {most}"
        ):
            check_fit(TrainConfig.model_validate(fitting | {"lora_rank": rank}), model.folder)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"lora_targets": ["q_proj"]}, "lora_target_unknown"),
        ({"lycoris_config": {"algo": "loha", "linear_dim": 2**31 - 1}}, "lycoris_dim_too_large"),
        (
            {"lycoris_config": {"algo": "lokr", "apply_preset": {"target_module": ["Attention"]}}},
            "lycoris_selects_nothing",
        ),
    ],
)
def test_a_plan_refuses_what_a_training_refuses(options: dict[str, object], code: str) -> None:
    if "lycoris_config" in options:
        options = {**options, "lora_type": "lycoris"}
    for flavour in ("embedded", "final"):
        with pytest.raises(ConfigError) as caught:
            forecast(TrainConfig.model_validate({"model_flavour": flavour, **options}), gpu_bytes=80 * 2**30)
        assert [problem.code for problem in caught.value.problems] == [code]


@pytest.mark.parametrize(
    ("changes", "scale"), [({}, 1.0), ({"lora_alpha": 4}, 0.25), ({"use_rslora": True, "lora_alpha": 4}, 1.0)]
)
def test_a_new_adapter_changes_nothing_and_has_the_configured_scale(
    transformer: LongCatImageTransformer2DModel, changes: dict[str, object], scale: float
) -> None:
    parameters = inject(transformer, settings(**changes))
    weights = weights_of(transformer)
    assert weights.alpha / weights.rank == pytest.approx(scale)
    assert all(not layer.up.any() and layer.down.any() for layer in weights.layers.values())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert {p for p in transformer.parameters() if p.requires_grad} == set(parameters)


def test_the_seed_decides_how_it_starts(model: Components) -> None:
    starts = []
    for seed in (1, 1, 2):
        transformer = copy.deepcopy(model.transformer)
        inject(transformer, settings(seed=seed))
        starts.append(next(iter(weights_of(transformer).layers.values())).down)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_training_can_start_from_an_adapter_of_the_same_shape(model: Components, tmp_path: Path) -> None:
    first = copy.deepcopy(model.transformer)
    inject(first, settings())
    for parameter in (p for p in first.parameters() if p.requires_grad):
        parameter.data.normal_()
    save_lora(weights_of(first), tmp_path / "start.safetensors")
    second = copy.deepcopy(model.transformer)
    inject(second, settings(init_lora=str(tmp_path / "start.safetensors"), seed=9))
    assert _equal(weights_of(first), weights_of(second))
    for changes, message in (
        ({"lora_rank": 32}, "rank 16"),
        ({"lora_alpha": 3}, "alpha 16"),
        ({"lora_targets": "official"}, "set lora_targets to the same layers"),
    ):
        with pytest.raises(ConfigError, match=message):
            inject(copy.deepcopy(model.transformer), settings(init_lora=str(tmp_path / "start.safetensors"), **changes))
    with pytest.raises(AdapterError, match="rank 16"):
        inject(copy.deepcopy(model.transformer), settings(init_lora=str(tmp_path / "start.safetensors"), lora_rank=8))


@pytest.mark.parametrize("every", [1, 2])
def test_checkpointing_changes_what_is_kept_and_no_gradient(model: Components, every: int) -> None:
    gradients, kept = [], []
    for checkpointed in (False, True):
        transformer = copy.deepcopy(model.transformer)
        parameters = inject(transformer, settings(lora_dropout=0, lora_init_type="gaussian"))
        for parameter in parameters:
            parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(parameter.numel()))
        transformer.train()
        if checkpointed:
            checkpoint_blocks(transformer, every=every)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.nbytes), t)[1], lambda t: t
        ):
            loss = transformer(
                hidden_states=torch.ones(1, 64, 64),
                encoder_hidden_states=torch.ones(1, 32, transformer.config.joint_attention_dim),
                timestep=torch.tensor([0.5]), txt_ids=torch.zeros(32, 3), img_ids=torch.zeros(64, 3), return_dict=False,
            )[0].square().mean()  # fmt: skip
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
        kept.append(sum(sizes))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-5, atol=1e-8)
    assert kept[1] < kept[0] * (0.3 if every == 1 else 0.8)


def _equal(a: LoraWeights, b: LoraWeights) -> bool:
    return a.alpha == b.alpha and all(
        torch.equal(layer.down, b.layers[name].down) and torch.equal(layer.up, b.layers[name].up)
        for name, layer in a.layers.items()
    )


def test_an_adapter_of_the_whole_transformer_learns_and_is_served_as_it_was_trained(model: Components) -> None:
    trained = copy.deepcopy(model.transformer)
    torch.manual_seed(0)
    parameters = inject(trained, settings(lora_targets="whole-transformer", lora_rank=4, lora_dropout=0.0))
    for parameter in parameters:
        parameter.data += 0.02 * torch.randn(parameter.shape)
    expected = velocity(trained, encode(model, PROMPT))
    weights = weights_of(trained)
    assert weights.layers.keys() == linear_modules(model.transformer).keys()
    slots = filled_slots(model, [weights])
    torch.testing.assert_close(served_velocity(model, slots, (0, 1.0)), expected, rtol=1e-5, atol=2e-5)
    trained.train()
    trained(
        hidden_states=NOISE, encoder_hidden_states=encode(model, PROMPT), timestep=torch.tensor([0.4]),
        txt_ids=text_ids(32), img_ids=image_ids(height_px=128, width_px=128, max_tokens=32), return_dict=False,
    )[0].square().mean().backward()  # fmt: skip
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)


def test_the_output_layer_alone_can_be_trained(model: Components) -> None:
    trained = copy.deepcopy(model.transformer)
    inject(trained, settings(lora_targets=["transformer.proj_out"]))
    assert [name for name, _ in lora_layers(trained)] == ["proj_out"]
