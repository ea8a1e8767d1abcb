"""Loading of slots on a simulated GPU: copies beside the steps, and memory that runs out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.lora import LoraWeights
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.sampling.slots import AdapterSlots
from tests.longcat.sampling.test_slots import random_lora
from tests.service.engine.harness import EngineHarness
from tests.simulated_gpu.device import Counting, faults
from tests.simulated_gpu.test_generation import pixels, with_dora

pytestmark = pytest.mark.simulated_gpu

RANK = 16


@pytest.fixture(scope="module")
def gpu_model(flavour: Flavour) -> Components:
    return load(flavour, device="cuda", dtype="bfloat16")


def dora(model: Components, seed: int = 1) -> LoraWeights:
    """Return an adapter with DoRA and a changed bias."""
    weights = with_dora(random_lora(lora_targets(model.transformer), seed=seed, rank=RANK, only=("to_q", "proj_out")))
    name = next(iter(weights.layers))
    return replace(
        weights, vectors={name: torch.full((weights.layers[name].tensors()["lora_B.weight"].shape[0],), 0.1)}
    )


def slots_of(model: Components, count: int = 2) -> AdapterSlots:
    return AdapterSlots(model.transformer, count=count, rank=RANK, device=model.device, dtype=torch.bfloat16)


def test_slots_are_loaded_from_pinned_memory_without_a_wait(gpu_model: Components) -> None:
    slots = slots_of(gpu_model)
    staged = slots.staged(dora(gpu_model))
    counting = Counting()
    slots.load(0, staged)
    assert counting.so_far.to_device > 0
    assert (counting.so_far.pageable, counting.so_far.to_host, counting.so_far.waits) == (0, 0, 0)
    assert counting.so_far.synchronizations == 0


def test_a_forward_waits_for_the_copies_of_its_own_adapters_alone(gpu_model: Components) -> None:
    targets = lora_targets(gpu_model.transformer)
    slots = slots_of(gpu_model)
    for slot in (0, 1):
        slots.load(slot, slots.staged(random_lora(targets, seed=slot, rank=RANK)))
        if slot == 0:
            slots.gather([((0, 1.0),)])
    copied = slots.buffers.tensors["transformer_blocks.0.attn.to_q"]
    slots.gather([((0, 1.0),)])
    assert copied[0].isfinite().all()
    with pytest.raises(RuntimeError, match="waited for the copy"):
        copied[1].isfinite()
    slots.gather([((1, 1.0),)])
    assert copied[1].isfinite().all()


def test_gains_and_biases_are_not_made_again_when_the_batch_changes(gpu_model: Components) -> None:
    slots = slots_of(gpu_model)
    slots.load(0, slots.staged(dora(gpu_model)))
    slots.load(1, slots.staged(dora(gpu_model, seed=2)))
    counting = Counting()
    slots.gather([((0, 1.0),), ()])
    slots.gather([((1, 1.0),)])
    assert counting.so_far.operations == 0
    slots.gather([((0, 0.5),)])
    assert counting.so_far.operations > 0
    counting = Counting()
    slots.gather([(), ((0, 0.5),)])
    assert counting.so_far.operations == 0


def test_slots_have_the_numbers_of_a_cpu(gpu_model: Components, model: Components) -> None:
    weights = dora(gpu_model)
    on_gpu, on_cpu = slots_of(gpu_model), AdapterSlots(
        model.transformer, count=2, rank=RANK, device=torch.device("cpu"), dtype=torch.bfloat16
    )  # fmt: skip
    on_gpu.load(0, on_gpu.staged(weights))
    on_cpu.load(0, weights)
    on_gpu.gather([((0, 1.0),)])
    for name, buffer in on_cpu.buffers.tensors.items():
        assert torch.equal(on_gpu.buffers.tensors[name].cpu(), buffer)


@pytest.mark.parametrize("allocations", [0, 20])
def test_an_adapter_without_memory_is_loaded_again(gpu_model: Components, allocations: int) -> None:
    harness = EngineHarness(gpu_model, adapter_slots=4)
    harness.submit("a", "a1", steps=1)
    harness.settle()
    with faults(fail_after=allocations):
        harness.engine.step()
    harness.run(1)
    expected = EngineHarness(gpu_model, adapter_slots=4)
    expected.submit("a", "a1", steps=1)
    expected.run(1)
    assert (pixels(harness.pictures("a")[0]) == pixels(expected.pictures("a")[0])).all()


def test_a_request_whose_adapter_never_fits_fails_alone(gpu_model: Components) -> None:
    harness = EngineHarness(gpu_model, adapter_slots=4, max_rows=64)
    harness.submit("plain", steps=3)
    harness.settle()
    harness.engine.step()
    harness.submit("whole", "whole")
    harness.settle()
    harness.engine._read_inbox(0)
    with faults(free_bytes=0):
        harness.engine._admission.admit()
    assert "OutOfMemoryError" in str(harness.error("whole"))
    harness.submit("later", "whole")
    harness.submit("other", "a1")
    harness.run(4)
    assert {len(harness.pictures(name)) for name in ("plain", "later", "other")} == {1}
    assert np.isfinite(pixels(harness.pictures("later")[0])).all()


def test_a_pinned_adapter_that_does_not_fit_ends_nothing(gpu_model: Components) -> None:
    harness = EngineHarness(gpu_model, adapter_slots=8)
    harness.engine.pin([harness.adapters.resolve("whole")])
    with faults(free_bytes=0):
        harness.engine.step()
    assert not harness.engine.slot_table.loaded
    harness.engine.step()  # not tried at every step
    assert not harness.engine.slot_table.loaded
    harness.submit("later", "whole", steps=1)
    harness.run(1)
    assert harness.pictures("later")
