"""DoRA from training to serving: PEFT's numbers at any scale, alone and mixed, without effect on other rows."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import LongCatImageTransformer2DModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from longcat.adapter.export import write_comfyui
from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.dora import plain_weight
from longcat.adapter.weights.draft import draft_of
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.errors import AdapterError, ConfigError
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.model.precision import Precision
from longcat.model.quantized.quantize import quantize_base
from longcat.sampling import latents
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots, SlotUse
from longcat.sampling.updates.update import Rescaling
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_slots import PEFT_TOLERANCE, draw, filled_slots, random_lora
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.model.base import without_adapter
from trainer.model.lora import LoraSettings, inject, load_weights, lora_layers, weights_of
from trainer.model.magnitude import Magnitude

NOISE = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))


def random_dora(model: Components, *, seed: int, **options: object) -> LoraWeights:
    """Return an adapter whose magnitudes are within a fifth of the model's own."""
    plain = random_lora(lora_targets(model.transformer), seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, layer in plain.layers.items():
        lengths = plain_weight(model.transformer.get_submodule(name)).norm(dim=1)
        layers[name] = replace(layer, magnitude=lengths * (0.8 + 0.4 * torch.rand(lengths.shape, generator=generator)))
    return LoraWeights(alpha=plain.alpha, layers=layers)


def velocity(model: nn.Module, embeds: Tensor, *, grad: bool = False) -> Tensor:
    with torch.set_grad_enabled(grad):
        return model(
            hidden_states=NOISE,
            encoder_hidden_states=embeds, timestep=torch.tensor([0.4]), txt_ids=latents.text_ids(32),
            img_ids=latents.image_ids(height_px=128, width_px=128, max_tokens=32), return_dict=False,
        )[0]  # fmt: skip


def served_velocity(model: Components, slots: AdapterSlots, uses: tuple[SlotUse, ...]) -> Tensor:
    forward = Forward(model.transformer, model.device)
    embeds = encode(model, "一个红苹果")
    rope = forward.rope(height_px=128, width_px=128, prompt_rows=32)
    modulation = forward.modulations(torch.tensor([0.4], dtype=model.dtype))[0][None]
    return forward(NOISE.to(model.dtype), forward.context(embeds), modulation, rope, slots.gather([uses]))


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize(
    "uses", [((0, 1.0),), ((0, 0.3),), ((0, -0.7),), ((0, 0.0),), ((2, 1.0), (0, 0.7)), ((0, 0.7), (1, 1.5), (2, 0.5))]
)
def test_served_velocities_are_pefts(model: Components, tmp_path: Path, uses: tuple[SlotUse, ...]) -> None:
    adapters = [
        random_dora(model, seed=1, alpha=8, only=("",)),
        random_dora(model, seed=2, rank=5, alpha=3),
        random_lora(lora_targets(model.transformer), seed=3, rank=4, alpha=4, only=("",)),
    ]
    reference = copy.deepcopy(model.transformer)
    for i, weights in enumerate(adapters):
        save_lora(weights, tmp_path / f"{i}.safetensors")
        reference.load_lora_adapter(tmp_path / f"{i}.safetensors", adapter_name=f"a{i}", use_safetensors=True)
    reference.set_adapters([f"a{slot}" for slot, _ in uses], [scale for _, scale in uses])
    expected = velocity(reference, encode(model, "一个红苹果"))
    slots = filled_slots(model, adapters)
    assert (expected - served_velocity(model, slots, ())).abs().max() > 0.1  # the adapters have an effect
    actual = served_velocity(model, slots, uses)
    torch.testing.assert_close(actual, expected, rtol=PEFT_TOLERANCE, atol=PEFT_TOLERANCE)


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_is_bitwise_the_same_whatever_its_neighbours_use(flavour: Flavour, dtype: str) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    targets = lora_targets(model.transformer)
    adapters = [
        random_dora(model, seed=0, rank=16),
        random_lora(targets, seed=1, rank=16),
        random_dora(model, seed=2, rank=4, only=("",)),
    ]
    slots, forward = filled_slots(model, adapters), Forward(model.transformer, model.device)
    uses: list[tuple[SlotUse, ...]] = [((0, 1.0),), ((1, 1.0),), ((2, 0.5), (1, 0.3)), ((0, 0.4),)]
    together = draw(model, forward, slots, *uses, steps=(2,))
    plain = filled_slots(model, [adapters[1]])
    for i, use in enumerate(uses):
        rest = [() for _ in range(i)]
        alone = draw(model, forward, slots, *rest, use, steps=(2,))[i]
        assert torch.equal(together[i].latents_1NC, alone.latents_1NC), i
    without = draw(model, forward, plain, (), ((0, 1.0),), steps=(2,))[1]
    assert torch.equal(together[1].latents_1NC, without.latents_1NC)


def test_a_slot_keeps_no_magnitudes_of_the_adapter_before(model: Components) -> None:
    dora, lora = random_dora(model, seed=1, only=("",)), random_lora(lora_targets(model.transformer), seed=2)
    used, fresh = filled_slots(model, [dora]), filled_slots(model, [lora])
    used.load(0, lora)
    assert torch.equal(served_velocity(model, used, ((0, 1.0),)), served_velocity(model, fresh, ((0, 1.0),)))
    gathered = used.gather([((0, 1.0),)])
    assert gathered is not None
    updates = [update for block in gathered.values() for layer in block.values() for update in layer]
    assert updates
    assert not any(isinstance(update, Rescaling) for update in updates)


def test_compiled_forwards_refuse_it_by_name(model: Components) -> None:
    slots = AdapterSlots(model.transformer, count=1, rank=16, device=model.device, dtype=model.dtype, whole=True)
    with pytest.raises(AdapterError, match=r"DoRA.*without --compile"):
        slots.check(random_dora(model, seed=1))


QUANTIZED = [precision for precision in Precision if precision is not Precision.NO_CHANGE]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_lengths_are_those_of_the_weights_that_compute(flavour: Flavour, precision: Precision) -> None:
    model = load(flavour, device="cpu", dtype="bfloat16", precision=precision)
    whole = load(flavour, device="cpu", dtype="bfloat16")
    adapter = random_dora(whole, seed=1, alpha=8)
    scale = 0.7
    gathered = filled_slots(model, [adapter]).gather([((0, scale),)])
    assert gathered is not None
    for name, layer in adapter.layers.items():
        block = ".".join(name.split(".", 2)[:2])
        _, rescaling = gathered[block][name[len(block) + 1 :]]
        base = model.transformer.get_submodule(name)
        base.bias.data.zero_()
        computes = base(torch.eye(base.in_features, dtype=torch.bfloat16)).float().T
        assert layer.magnitude is not None
        expected = layer.magnitude / (computes + scale * 8 / 16 * layer.up @ layer.down).norm(dim=1)
        torch.testing.assert_close(rescaling.gain[0, 0], expected, rtol=1e-3, atol=0)


def test_files_keep_magnitudes_except_comfyuis(model: Components, flavour: Flavour, tmp_path: Path) -> None:
    weights = random_dora(model, seed=1, alpha=8)
    save_lora(weights, tmp_path / "dora.safetensors")
    targets = lora_targets(model.transformer)
    for back in (
        load_lora(tmp_path / "dora.safetensors"),
        read_foreign(tmp_path / "dora.safetensors", targets).weights,
    ):
        assert back.alpha == 8
        assert all(_same(layer, back.layers[name]) for name, layer in weights.layers.items())
    draft = draft_of(weights, flavour, origin="trained")
    assert (draft.use_dora, draft.tensors) == (True, 3 * len(weights.layers))
    with pytest.raises(AdapterError, match=r"DoRA.*export it in the format diffusers"):
        write_comfyui(weights, tmp_path / "comfyui.safetensors")


def test_pefts_own_directory_is_served_as_peft_draws_it(model: Components, tmp_path: Path) -> None:
    tuned = get_peft_model(
        copy.deepcopy(model.transformer),
        LoraConfig(r=4, lora_alpha=3, use_dora=True, use_rslora=True, target_modules=["to_q", "proj_mlp"]),
    )
    generator = torch.Generator().manual_seed(3)
    for name, parameter in tuned.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.03
        if "magnitude" in name:
            parameter.data *= 0.8 + 0.4 * torch.rand(parameter.shape, generator=generator)
    tuned.save_pretrained(tmp_path)
    foreign = read_foreign(tmp_path, lora_targets(model.transformer))
    assert (foreign.origin, foreign.weights.uses_dora) == ("official", True)
    expected = velocity(tuned, encode(model, "一个红苹果"))
    actual = served_velocity(model, filled_slots(model, [foreign.weights]), ((0, 1.0),))
    torch.testing.assert_close(actual, expected, rtol=PEFT_TOLERANCE, atol=PEFT_TOLERANCE)


def settings(**changes: object) -> LoraSettings:
    config = TrainConfig.model_validate({"model_flavour": "embedded", "use_dora": True, **changes})
    return select(config, LoraSettings)


def test_a_new_adapter_changes_nothing(model: Components) -> None:
    transformer = copy.deepcopy(model.transformer)
    parameters = inject(transformer, settings())
    assert {p for p in transformer.parameters() if p.requires_grad} == set(parameters)
    weights = weights_of(transformer)
    embeds = encode(model, "一个红苹果")
    plain = velocity(model.transformer, embeds)
    torch.testing.assert_close(velocity(transformer, embeds), plain, rtol=1e-5, atol=1e-5)
    served = served_velocity(model, filled_slots(model, [weights]), ((0, 1.0),))
    torch.testing.assert_close(served, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_are_those_of_pefts_own_dora(model: Components, dropout: float) -> None:
    results = []
    for ours in (True, False):
        transformer = copy.deepcopy(model.transformer)
        inject(transformer, settings(lora_dropout=dropout))
        load_weights(transformer, random_dora(model, seed=1), field="init_lora", source="start")
        if not ours:
            _with_pefts_own(transformer)
        transformer.train()
        torch.manual_seed(7)
        loss = _loss(transformer)
        loss.backward()
        gradients = [p.grad.flatten() for p in transformer.parameters() if p.grad is not None]
        results.append((loss.detach(), torch.cat(gradients)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("precision", [Precision.NO_CHANGE, *QUANTIZED])
def test_every_precision_trains_and_is_served_as_it_was_trained(flavour: Flavour, precision: Precision) -> None:
    model = load(flavour, device="cpu", dtype="bfloat16")
    quantize_base(model.transformer, precision, device=model.device, training=True)
    slots = AdapterSlots(model.transformer, count=1, rank=16, device=model.device, dtype=model.dtype)
    embeds = encode(model, "一个红苹果")
    plain = _velocity_in_training(model, embeds)
    parameters = inject(model.transformer, settings(lora_dropout=0))
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        parameter.data += (
            torch.randn(parameter.shape, generator=generator) * 0.1 * parameter.data.abs().mean().clamp_min(0.1)
        )
    slots.load(0, weights_of(model.transformer))
    trained = _velocity_in_training(model, embeds)
    trained.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
    assert all(layer.lora_magnitude_vector["default"].weight.grad.any() for _, layer in lora_layers(model.transformer))
    with without_adapter(model.transformer):
        served = served_velocity(model, slots, ((0, 1.0),)).float()
    effects = [(adapted - plain).detach().flatten() for adapted in (trained, served)]
    assert torch.cosine_similarity(*effects, dim=0) > 0.97


def test_magnitudes_are_resumed_and_belong_to_the_configuration(model: Components, tmp_path: Path) -> None:
    first = copy.deepcopy(model.transformer)
    inject(first, settings())
    for parameter in (p for p in first.parameters() if p.requires_grad):
        parameter.data.normal_()
    save_lora(weights_of(first), tmp_path / "start.safetensors")
    start = str(tmp_path / "start.safetensors")
    second = copy.deepcopy(model.transformer)
    inject(second, settings(init_lora=start, seed=9))
    there = weights_of(second)
    assert all(_same(layer, there.layers[name]) for name, layer in weights_of(first).layers.items())
    with pytest.raises(ConfigError, match="uses DoRA; set use_dora to true"):
        inject(copy.deepcopy(model.transformer), settings(init_lora=start, use_dora=False))


def _same(a: LoraLayer, b: LoraLayer) -> bool:
    assert a.magnitude is not None
    assert b.magnitude is not None
    return torch.equal(a.down, b.down) and torch.equal(a.up, b.up) and torch.equal(a.magnitude, b.magnitude)


def _with_pefts_own(transformer: LongCatImageTransformer2DModel) -> None:
    from peft.tuners.lora.dora import DoraLinearLayer

    for _, layer in lora_layers(transformer):
        ours = layer.lora_magnitude_vector["default"]
        assert isinstance(ours, Magnitude)
        theirs = DoraLinearLayer(fan_in_fan_out=False)
        theirs.weight = nn.Parameter(ours.weight.detach().clone())
        layer.lora_magnitude_vector["default"] = theirs


def _velocity_in_training(model: Components, embeds: Tensor) -> Tensor:
    predicted = model.transformer(
        hidden_states=NOISE.to(model.dtype), encoder_hidden_states=embeds,
        timestep=torch.tensor([0.4], dtype=model.dtype), txt_ids=latents.text_ids(32),
        img_ids=latents.image_ids(height_px=128, width_px=128, max_tokens=32), return_dict=False,
    )[0]  # fmt: skip
    return predicted.float()


def _loss(transformer: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    predicted = transformer(
        hidden_states=torch.randn(2, 64, 64, generator=generator).to(dtype),
        encoder_hidden_states=torch.randn(2, 32, 256, generator=generator).to(dtype),
        timestep=torch.tensor([0.5, 0.2], dtype=dtype), txt_ids=latents.text_ids(32),
        img_ids=latents.image_ids(height_px=128, width_px=128, max_tokens=32), return_dict=False,
    )[0]  # fmt: skip
    return predicted.float().square().mean()
