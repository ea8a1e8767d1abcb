"""Adapter slots: results equal PEFT's, do not depend on other rows, and cause no recompilation."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.file import save_lora
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.model.precision import Precision
from longcat.sampling import denoise, latents
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots, SlotUse
from tests.longcat.sampling.test_denoise import encode

PEFT_TOLERANCE = 1e-5
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def random_lora(
    targets: Mapping[str, tuple[int, int]],
    *,
    seed: int,
    rank: int = 16,
    alpha: float = 16,
    only: Sequence[str] = ATTENTION,
) -> LoraWeights:
    """Return an adapter that visibly changes the picture. ``only``: endings of the layers that it changes."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: LoraLayer(
            torch.randn(rank, width_in, generator=generator) / width_in**0.5,
            torch.randn(width_out, rank, generator=generator) * 0.05,
        )
        for name, (width_in, width_out) in targets.items()
        if name.endswith(tuple(only))
    }
    return LoraWeights(alpha=alpha, layers=layers)


def filled_slots(
    model: Components, adapters: Sequence[LoraWeights], *, rank: int = 32, whole: bool = False
) -> AdapterSlots:
    slots = AdapterSlots(
        model.transformer, count=len(adapters), rank=rank, device=model.device, dtype=model.dtype, whole=whole
    )
    for slot, weights in enumerate(adapters):
        slots.check(weights)
        slots.load(slot, weights)
    return slots


def draw(
    model: Components,
    forward: Forward,
    slots: AdapterSlots,
    *uses: tuple[SlotUse, ...],
    size: tuple[int, int] = (128, 128),
    guidance: Sequence[float] = (2.0,),
    steps: Sequence[int] = (3,),
) -> list[denoise.Denoising]:
    """Generate one picture for each use of slots, all in the same forwards; picture i from seed i."""
    pictures = [
        denoise.start(
            model,
            forward,
            embeds_1LJ=encode(model, "一只猫"),
            negative_embeds_1LJ=encode(model, ""),
            height_px=size[0],
            width_px=size[1],
            steps=steps[i % len(steps)],
            guidance_scale=guidance[i % len(guidance)],
            cfg_renorm=True,
            seed=i,
            adapters=adapters,
            slots=slots,
        )
        for i, adapters in enumerate(uses)
    ]
    while running := [picture for picture in pictures if not picture.is_done]:
        denoise.advance(forward, running, slots)
    return pictures


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize("only", [ATTENTION, ("",), ("add_q_proj", "proj_mlp", "ff_context.net.2", "proj_out")])
def test_an_adapter_changes_velocities_as_peft_does(model: Components, tmp_path: Path, only: Sequence[str]) -> None:
    adapters = [
        random_lora(lora_targets(model.transformer), seed=1, alpha=8, only=only),
        random_lora(lora_targets(model.transformer), seed=2, rank=5, alpha=3, only=only),
    ]
    reference = copy.deepcopy(model.transformer)
    for i, weights in enumerate(adapters):
        save_lora(weights, tmp_path / f"{i}.safetensors")
        reference.load_lora_adapter(tmp_path / f"{i}.safetensors", adapter_name=f"a{i}", use_safetensors=True)
    reference.set_adapters(["a0", "a1"], [0.7, 1.5])
    slots = filled_slots(model, adapters)
    forward = Forward(model.transformer, model.device)
    hidden = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    time, embeds = torch.tensor(0.4), encode(model, "一个红苹果")
    with torch.no_grad():
        expected = reference(
            hidden_states=hidden,
            encoder_hidden_states=embeds,
            timestep=time[None],
            txt_ids=latents.text_ids(32),
            img_ids=latents.image_ids(height_px=128, width_px=128, max_tokens=32),
            return_dict=False,
        )[0]
    rope = forward.rope(height_px=128, width_px=128, prompt_rows=32)
    inputs = hidden, forward.context(embeds), forward.modulations(time[None])[0][None], rope
    plain = forward(*inputs)
    actual = forward(*inputs, slots.gather([((0, 0.7), (1, 1.5))]))
    assert (expected - plain).abs().max() > 0.1  # the adapters have an effect
    torch.testing.assert_close(actual, expected, rtol=PEFT_TOLERANCE, atol=PEFT_TOLERANCE)


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(128, 128), (64, 64), (64, 192)])
def test_a_picture_is_bitwise_the_same_whatever_adapters_its_neighbours_use(
    flavour: Flavour, dtype: str, size: tuple[int, int]
) -> None:
    model = load(flavour, device="cpu", dtype=dtype)
    targets = lora_targets(model.transformer)
    ranks = {0: 16, 1: 4, 2: 32, 3: 9}
    adapters = [random_lora(targets, seed=s, rank=r, only=("",) if s % 2 else ATTENTION) for s, r in ranks.items()]
    slots, forward = filled_slots(model, adapters), Forward(model.transformer, model.device)
    uses: list[tuple[SlotUse, ...]] = [((0, 1.0),), (), ((1, 0.5),), ((2, 1.0), (3, -0.8)), ((0, 1.0),)]
    settings = {"guidance": (2.0, 3.0, 1.0), "steps": (3, 5, 4, 2), "size": size}
    together = draw(model, forward, slots, *uses, **settings)
    for i, use in enumerate(uses):
        rest = [() for _ in range(i)]  # picture i again, from the same seed, with neighbours that use none
        alone = draw(model, forward, slots, *rest, use, **settings)[i]
        single = denoise.start(
            model, forward, embeds_1LJ=encode(model, "一只猫"), negative_embeds_1LJ=encode(model, ""), height_px=size[0],
            width_px=size[1], steps=settings["steps"][i % 4], guidance_scale=settings["guidance"][i % 3], cfg_renorm=True,
            seed=i,
        )  # fmt: skip
        single.adapters = use
        while not single.is_done:
            denoise.advance(forward, [single], slots)
        assert torch.equal(together[i].latents_1NC, single.latents_1NC), i
        assert torch.equal(alone.latents_1NC, single.latents_1NC), i
    assert not torch.equal(together[0].latents_1NC, together[1].latents_1NC)


def test_loading_another_adapter_into_a_slot_leaves_nothing_of_the_one_before(model: Components) -> None:
    targets = lora_targets(model.transformer)
    wide, narrow = random_lora(targets, seed=1, rank=32, only=("",)), random_lora(targets, seed=2, rank=4)
    used, fresh = filled_slots(model, [wide]), filled_slots(model, [narrow])
    forward = Forward(model.transformer, model.device)
    before = draw(model, forward, used, ((0, 1.0),))[0].latents_1NC
    used.load(0, narrow)
    after = draw(model, forward, used, ((0, 1.0),))[0].latents_1NC
    assert torch.equal(after, draw(model, forward, fresh, ((0, 1.0),))[0].latents_1NC)
    assert not torch.equal(after, before)
    used.load(0, wide)
    assert torch.equal(draw(model, forward, used, ((0, 1.0),))[0].latents_1NC, before)


SAME_EFFECT = {Precision.INT8_TORCHAO: 0.95, Precision.INT8_QUANTO: 0.95, Precision.INT4_QUANTO: 0.6}
"""Least cosine between an adapter's changes of the picture on a quantized and on an unquantized base."""


@pytest.mark.heavy
@pytest.mark.parametrize("precision", SAME_EFFECT)
def test_adapters_work_on_quantized_bases(flavour: Flavour, precision: Precision) -> None:
    whole = load(flavour, device="cpu", dtype="bfloat16")
    small = load(flavour, device="cpu", dtype="bfloat16", precision=precision)
    adapter = random_lora(lora_targets(whole.transformer), seed=1)
    effects = []
    for model in (whole, small):
        slots, forward = filled_slots(model, [adapter]), Forward(model.transformer, model.device)
        adapted, plain = (draw(model, forward, slots, use)[0].latents_1NC for use in (((0, 1.0),), ()))
        effects.append((adapted - plain).float().flatten())
    assert torch.cosine_similarity(*effects, dim=0) > SAME_EFFECT[precision]


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_swapping_adapters_compiles_nothing_again(model: Components) -> None:
    targets = lora_targets(model.transformer)
    adapters = [
        random_lora(targets, seed=s, rank=r, only=("",) if s % 2 else ATTENTION) for s, r in enumerate((16, 4, 8))
    ]
    slots = filled_slots(model, adapters, rank=16, whole=True)
    eager, compiled = Forward(model.transformer, model.device), Forward(model.transformer, model.device, compiled=True)
    torch._dynamo.reset()
    uses: list[tuple[SlotUse, ...]] = [((0, 1.0),), ((1, 1.0),), ()]
    for rows in (3, 2):
        draw(model, compiled, slots, *uses[:rows], steps=(1,))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i, use in enumerate(uses):
            slots.load(0, adapters[i])
            swapped = draw(model, compiled, slots, use, ((0, 0.5),), use)
            expected = draw(model, eager, slots, use, ((0, 0.5),), use)
            for a, b in zip(swapped, expected, strict=True):
                torch.testing.assert_close(a.latents_1NC, b.latents_1NC, rtol=0, atol=2e-4)
