"""LoKr and LoHa, against the ``lycoris-lora`` package: read from its files, stored, served alone and with other kinds."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longcat.adapter.export import WRITERS
from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import adaptable_modules, linear_modules, lora_targets
from longcat.adapter.verification import changes_nothing, check_lora
from longcat.adapter.weights.draft import describe_lora
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.adapter.weights.lycoris import LohaLayer, LokrLayer, pairs
from longcat.errors import AdapterError
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.sampling import denoise
from longcat.sampling.forward import Forward
from tests.longcat.adapter.weights.test_dora import random_dora, velocity
from tests.longcat.sampling.test_denoise import encode
from tests.longcat.sampling.test_layers_beside_blocks import served_velocity
from tests.longcat.sampling.test_slots import draw, filled_slots, random_lora

TOLERANCE = 1e-5
PRESET: dict[str, Any] = {
    "target_module": ["LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock"],
    "target_name": [], "module_algo_map": {}, "name_algo_map": {}, "exclude_name": [r".*norm"],
}  # fmt: skip
WHOLE = ["LongCatImageTransformer2DModel"]
"""Also modulations, embedders and the output layer."""
KINDS: Mapping[str, dict[str, Any]] = {
    "lokr whole": {"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 4},
    "lokr full_matrix": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "factor": 16, "full_matrix": True},
    "lokr low rank": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "factor": 8},
    "lokr both low": {"algo": "lokr", "linear_dim": 3, "linear_alpha": 6, "factor": 16, "decompose_both": True},
    "lokr unbalanced": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 4, "factor": 8, "unbalanced_factorization": True},
    "lokr square": {"algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": -1},
    "loha": {"algo": "loha", "linear_dim": 4, "linear_alpha": 2},
    "mixed": {
        "algo": "lokr", "linear_dim": 10000, "linear_alpha": 1, "factor": 16,
        "module_algo_map": {"FeedForward": {"algo": "loha", "dim": 3, "alpha": 6}},
    },
    "lokr everywhere": {"algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "factor": 8, "target_module": WHOLE},
    "loha everywhere": {"algo": "loha", "linear_dim": 4, "linear_alpha": 2, "target_module": WHOLE},
}  # fmt: skip

DIFFERING = ("lokr whole", "lokr low rank", "loha", "mixed", "lokr everywhere", "loha everywhere")
"""Kinds whose slots hold other matrices."""


def create(
    transformer: nn.Module,
    *,
    module_algo_map: Mapping[str, Any] | None = None,
    target_module: Sequence[str] | None = None,
    **config: Any,
) -> LycorisNetwork:
    """Create a network of the real package on a transformer as SimpleTuner does: the preset is a class attribute."""
    preset = PRESET if target_module is None else {**PRESET, "target_module": target_module, "exclude_name": []}
    LycorisNetwork.apply_preset({**preset, "module_algo_map": dict(module_algo_map or {})})
    network = create_lycoris(transformer, 1.0, **config)
    network.apply_to()
    return network


def randomized(network: LycorisNetwork, seed: int) -> LycorisNetwork:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if name.endswith("w1_b"):
                parameter.mul_(0.3)
            elif name.endswith(("w2", "w2_b")):
                parameter.mul_(0.02)
    return network


SCALES = (1.0, 0.6, -0.5)


@pytest.fixture(params=KINDS, scope="module")
def written(
    model: Components, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, Mapping[float, Tensor]]:
    """Write a file by the real package; return it with the velocities of the model under it by scale."""
    transformer = copy.deepcopy(model.transformer)
    network = randomized(create(transformer, **KINDS[request.param]), seed=1)
    file = tmp_path_factory.mktemp("lycoris") / "lycoris.safetensors"
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    velocities = {}
    for scale in SCALES:
        network.set_multiplier(scale)
        velocities[scale] = velocity(transformer, encode(model, "一个红苹果"))
    return file, velocities


def random_lycoris(model: Components, kind: str, *, seed: int) -> LoraWeights:
    """Return an adapter of a kind in ``KINDS``, made by the real package and read from its file."""
    network = randomized(create(copy.deepcopy(model.transformer), **KINDS[kind]), seed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "lycoris.safetensors")
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
        return read_foreign(file, linear_modules(model.transformer)).weights


@pytest.mark.parametrize("rank", [None, 64], ids=["factors", "LoHa as LoRA"])
def test_served_velocities_are_those_of_the_package(
    model: Components, written: tuple[Path, Mapping[float, Tensor]], rank: int | None
) -> None:
    file, expected = written
    foreign = read_foreign(file, linear_modules(model.transformer))
    assert (foreign.origin, foreign.has_alpha, foreign.warnings) == ("lycoris", True, ())
    slots = filled_slots(model, [foreign.weights], rank=rank or foreign.weights.rank)
    plain = served_velocity(model, slots)
    for scale in SCALES:
        assert (expected[scale] - plain).abs().max() > 0.1  # the adapter has an effect
        served = served_velocity(model, slots, (0, scale))
        torch.testing.assert_close(served, expected[scale], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_version_keeps_every_number(
    model: Components, written: tuple[Path, Mapping[float, Tensor]], tmp_path: Path
) -> None:
    weights = read_foreign(written[0], linear_modules(model.transformer)).weights
    save_lora(weights, tmp_path / "a.safetensors")
    again = load_lora(tmp_path / "a.safetensors")
    assert describe_lora(again) == describe_lora(weights)
    assert describe_lora(weights)["kind"] in ("lokr", "loha", "loha+lokr")
    assert describe_lora(weights)["tensors"] == len(load_file(tmp_path / "a.safetensors"))
    for name, layer in weights.layers.items():
        for end, tensor in layer.tensors().items():
            assert torch.equal(again.layers[name].tensors()[end], tensor), (name, end)
    save_lora(again, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_is_bitwise_the_same_alone_and_in_a_batch_of_all_kinds(flavour: Flavour, dtype: str) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    adapters = [
        random_lora(lora_targets(model.transformer), seed=1, only=("",)),
        *(random_lycoris(model, kind, seed=seed) for seed, kind in enumerate(DIFFERING)),
        random_dora(model, seed=2, rank=4, only=("",)),
    ]
    slots, forward = filled_slots(model, adapters, rank=64), Forward(model.transformer, model.device)
    every = range(len(adapters))
    uses = [((slot, 1.0),) for slot in every] + [((1, 0.7), (3, -0.5)), ((4, 0.5), (7, 1.0)), (), ((7, 0.4),)]
    together = draw(model, forward, slots, *uses, size=(64, 64), steps=(2,))
    for i, use in enumerate(uses):
        single = denoise.start(
            model, forward, embeds_1LJ=encode(model, "一只猫"), negative_embeds_1LJ=encode(model, ""), height_px=64,
            width_px=64, steps=2, guidance_scale=2.0, cfg_renorm=True, seed=i, adapters=use, slots=slots,
        )  # fmt: skip
        while not single.is_done:
            denoise.advance(forward, [single], slots)
        assert torch.equal(together[i].latents_1NC, single.latents_1NC), i


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_bitwise_the_same_in_any_order_and_on_any_number_of_cores(flavour: Flavour, dtype: str) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    targets, kinds = lora_targets(model.transformer), ("loha", "lokr whole", "loha", "lokr whole")
    adapters = [random_lycoris(model, kind, seed=seed) for seed, kind in enumerate(kinds)]
    adapters += [random_lora(targets, seed=seed, only=("",)) for seed in (1, 2)]
    adapters += [random_dora(model, seed=seed, only=("",)) for seed in (1, 2)]
    slots, forward = filled_slots(model, adapters, rank=16), Forward(model.transformer, model.device)
    uses = [((slot, scale),) for slot in range(len(adapters)) for scale in (1.0, 0.5)]
    rope = forward.rope(height_px=64, width_px=64, prompt_rows=32)
    noise = torch.randn(len(uses), 16, 64, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    context = forward.context(encode(model, "一只猫"))
    modulation = forward.modulations(torch.tensor([0.4], dtype=model.dtype))[0][None]

    def velocities(forward: Forward, rows: Sequence[int]) -> Tensor:
        count, gathered = len(rows), slots.gather([uses[row] for row in rows])
        return forward(noise[rows], context.repeat(count, 1, 1), modulation.repeat(count, 1), rope, gathered)

    expected = torch.cat([velocities(forward, [row]) for row in range(len(uses))])
    sorted_rows = sorted(range(len(uses)), key=lambda row: slots.order(uses[row]))
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # 16 rows in shares that cut runs of one kind and of one adapter
    try:
        forwards = [forward, Forward(model.transformer, model.device)]
    finally:
        torch.set_num_threads(before)
    for computing in forwards:
        for rows in (list(range(len(uses))), sorted_rows, sorted_rows[::-1]):
            assert torch.equal(velocities(computing, rows), expected[rows]), rows


def test_a_slot_keeps_nothing_of_the_adapter_before(model: Components) -> None:
    lora = random_lora(lora_targets(model.transformer), seed=1)
    others = [random_lycoris(model, kind, seed=1) for kind in ("lokr whole", "loha")]
    slots = filled_slots(model, [lora], rank=64)
    alone = served_velocity(model, slots, (0, 1.0))
    for weights in others:
        slots.load(0, weights)
        expected = served_velocity(model, filled_slots(model, [weights], rank=64), (0, 1.0))
        assert torch.equal(served_velocity(model, slots, (0, 1.0)), expected)
    slots.load(0, lora)
    assert torch.equal(served_velocity(model, slots, (0, 1.0)), alone)


def test_a_slot_needs_no_more_memory_for_any_kind(model: Components) -> None:
    loha, lokr = random_lycoris(model, "loha", seed=1), random_lycoris(model, "lokr square", seed=1)
    assert loha.rank == 8  # twice its r: two products
    assert lokr.rank == 1  # of 16 x 16 numbers twice, against 256 + 256 of a LoRA
    slots = filled_slots(model, [loha], rank=8)
    before = slots.buffers.nbytes
    slots.load(0, lokr)
    assert slots.buffers.nbytes == before
    with pytest.raises(AdapterError, match="rank 8 exceeds the limit, 7"):
        filled_slots(model, [loha], rank=7)


def test_pairs_are_the_elementwise_product_of_two_updates() -> None:
    a1, a2, b1, b2 = torch.randn(6, 3), torch.randn(6, 3), torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(pairs(a1, a2, -1) @ pairs(b1, b2, -2), (a1 @ b1) * (a2 @ b2))


def spoiled(file: Path, change: str, tmp_path: Path) -> Path:
    """Return a copy of a LoKr's file with one defect."""
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith(".lokr_w1")).removesuffix(".lokr_w1")
    w1, w2 = tensors[f"{name}.lokr_w1"], tensors[f"{name}.lokr_w2"]
    match change:
        case "missing":
            del tensors[f"{name}.lokr_w2"]
        case "both":
            tensors[f"{name}.lora_down.weight"] = torch.zeros(4, 256)
        case "tucker":
            tensors[f"{name}.lokr_t2"] = torch.zeros(4, 4, 3, 3)
        case "dora":
            tensors[f"{name}.dora_scale"] = torch.ones(256, 1)
        case "wider":
            tensors[f"{name}.lokr_w2"] = torch.cat([w2, w2])
        case "vector":
            tensors[f"{name}.lokr_w1"] = w1[0]
        case "nan":
            tensors[f"{name}.lokr_w2"] = w2 * float("nan")
        case "integers":
            tensors[f"{name}.lokr_w1"] = w1.int()
        case "inner":
            tensors[f"{name}.lokr_w2_a"], tensors[f"{name}.lokr_w2_b"] = w2[:, :3].clone(), w2[:4].clone()
            del tensors[f"{name}.lokr_w2"]
    save_file(tensors, tmp_path / "spoiled.safetensors")
    return tmp_path / "spoiled.safetensors"


@pytest.mark.parametrize("written", ["lokr whole"], indirect=True)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("missing", "neither a whole LoKr nor a whole LoHa"), ("both", "neither a whole LoKr nor a whole LoHa"),
        ("tucker", "LoKr on convolutions"), ("dora", "DoRA"), ("wider", "lokr has shape"), ("vector", "have no product"),
        ("nan", "not finite"), ("integers", "int32, not floating-point"), ("inner", "have no product"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused_by_name(
    model: Components, written: tuple[Path, Mapping[float, Tensor]], change: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=problem):
        read_foreign(spoiled(written[0], change, tmp_path), lora_targets(model.transformer))


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "lycoris_"])
@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_matrices_of_a_norm_are_refused_by_name(model: Components, prefix: str, kind: str, tmp_path: Path) -> None:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "lora": {"lora_A.weight": (4, 64), "lora_B.weight": (64, 4)},
        "loha": {"hada_w1_a": (64, 4), "hada_w1_b": (4, 64), "hada_w2_a": (64, 4), "hada_w2_b": (4, 64), "alpha": ()},
        "lokr": {"lokr_w1": (8, 8), "lokr_w2": (8, 8)},
    }
    module = "transformer_blocks.0.attn.norm_q"
    name = f"{prefix}{module.replace('.', '_') if prefix.endswith('_') else module}"
    save_file({f"{name}.{end}": torch.ones(shape) for end, shape in shapes[kind].items()}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=rf"{module} has a {kind}, and is a norm"):
        read_foreign(tmp_path / "a.safetensors", adaptable_modules(model.transformer))


def test_products_that_overflow_are_refused(model: Components) -> None:
    loha = random_lycoris(model, "loha", seed=1)
    layers = {
        name: replace(layer, w1_a=layer.w1_a * 3e3, w2_a=layer.w2_a * 3e3)
        for name, layer in loha.layers.items()
        if isinstance(layer, LohaLayer)
    }
    large = LoraWeights(alpha=loha.alpha, layers=layers)
    check_lora(large, lora_targets(model.transformer), max_rank=8)
    with pytest.raises(AdapterError, match="too large for float16"):
        check_lora(large, lora_targets(model.transformer), max_rank=8, dtype=torch.float16)


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "lora_unet_", "lycoris_"])
def test_fused_attention_is_split_by_rows(model: Components, prefix: str, tmp_path: Path) -> None:
    name = f"{prefix}double_blocks.0.img_attn.qkv"
    if prefix.endswith("_"):
        name = prefix + "double_blocks_0_img_attn_qkv"
    loha = {
        f"hada_w{i}_{part}": torch.randn(shape) for i in (1, 2) for part, shape in (("a", (768, 4)), ("b", (4, 256)))
    }
    lokr = {"lokr_w1": torch.randn(6, 4), "lokr_w2_a": torch.randn(128, 2), "lokr_w2_b": torch.randn(2, 64)}
    for tensors in (loha, lokr):
        file = tmp_path / "fused.safetensors"
        save_file(
            {f"{name}.{key}": tensor for key, tensor in tensors.items()} | {f"{name}.alpha": torch.tensor(2.0)}, file
        )
        weights = read_foreign(file, linear_modules(model.transformer)).weights
        parts = [weights.layers[f"transformer_blocks.0.attn.{part}"].delta() for part in ("to_q", "to_k", "to_v")]
        whole = (
            LohaLayer(*loha.values(), scale=0.5)
            if tensors is loha
            else LokrLayer((lokr["lokr_w1"],), (lokr["lokr_w2_a"], lokr["lokr_w2_b"]), scale=1.0)
        )
        torch.testing.assert_close(torch.cat(parts), whole.delta())
        save_lora(weights, tmp_path / "saved.safetensors")  # parts of one tensor would not be written
    lokr["lokr_w1"], lokr["lokr_w2_a"] = torch.randn(4, 4), torch.randn(192, 2)
    save_file({f"{name}.{key}": tensor for key, tensor in lokr.items()} | {f"{name}.alpha": torch.tensor(2.0)}, file)
    with pytest.raises(AdapterError, match="does not split"):
        read_foreign(file, linear_modules(model.transformer))


def test_an_untrained_adapter_is_said_to_change_nothing(model: Components, tmp_path: Path) -> None:
    network = create(copy.deepcopy(model.transformer), **KINDS["loha"])
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "a.safetensors")
    foreign = read_foreign(tmp_path / "a.safetensors", linear_modules(model.transformer))
    assert changes_nothing(foreign.weights)
    assert [warning.code for warning in foreign.warnings] == ["adapter_changes_nothing"]


def test_a_file_as_simpletuner_writes_it(model: Components, tmp_path: Path) -> None:
    """LyCORIS writes bfloat16, the alpha 10000 rounded to 9984, and SimpleTuner its configuration in the header."""
    name = "lycoris_transformer_blocks_0_ff_net_0_proj"
    w1, w2 = torch.randn(4, 4).bfloat16(), torch.randn(256, 64).bfloat16()
    tensors = {f"{name}.lokr_w1": w1, f"{name}.lokr_w2": w2, f"{name}.alpha": torch.tensor(1e4).bfloat16()}
    config = '{"algo": "lokr", "factor": 4, "apply_preset": {"target_module": ["Attention", "FeedForward"]}}'
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lycoris_config": config})
    foreign = read_foreign(tmp_path / "a.safetensors", linear_modules(model.transformer))
    layer = foreign.weights.layers["transformer_blocks.0.ff.net.0.proj"]
    assert (foreign.origin, foreign.has_alpha, layer.kind) == ("lycoris", True, "lokr")
    torch.testing.assert_close(layer.delta(), torch.kron(w1.float(), w2.float()))


@pytest.mark.heavy
@pytest.mark.parametrize("format_", ["comfyui", "lycoris"])
def test_an_export_is_read_back_and_by_the_package(
    model: Components,
    written: tuple[Path, Mapping[float, Tensor]],
    format_: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    weights = read_foreign(written[0], linear_modules(model.transformer)).weights
    out = tmp_path / "out.safetensors"
    WRITERS[format_](weights, out)
    again = read_foreign(out, linear_modules(model.transformer)).weights
    for name, layer in weights.layers.items():
        assert torch.equal(again.layers[name].delta(), layer.delta()), name
    if format_ == "lycoris" and "unbalanced" not in request.node.name:  # whose files the package itself cannot read
        transformer = copy.deepcopy(model.transformer)
        with torch.no_grad():
            network, _ = create_lycoris_from_weights(1.0, str(out), transformer)
        network.apply_to()
        read = velocity(transformer, encode(model, "一个红苹果"))
        torch.testing.assert_close(read, written[1][1.0], rtol=TOLERANCE, atol=TOLERANCE)
    with pytest.raises(AdapterError, match="diffusers does not read"):
        WRITERS["diffusers"](weights, out)
    with pytest.raises(AdapterError, match="another kind"):
        WRITERS["lycoris"](random_lora(lora_targets(model.transformer), seed=1), out)


def test_a_version_file_is_imported_as_it_was(
    model: Components, written: tuple[Path, Mapping[float, Tensor]], tmp_path: Path
) -> None:
    weights = read_foreign(written[0], linear_modules(model.transformer)).weights
    save_lora(weights, tmp_path / "a.safetensors")
    again = read_foreign(tmp_path / "a.safetensors", linear_modules(model.transformer)).weights
    assert all(torch.equal(again.layers[name].delta(), layer.delta()) for name, layer in weights.layers.items())
