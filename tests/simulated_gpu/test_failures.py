"""Failures of a simulated GPU: memory that runs out, and a device that is lost."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from longcat.model.device.errors import first_that_fits
from longcat.model.flavour import Flavour
from longcat.model.loading import Components, load
from longcat.sampling import latents
from tests.service.engine.harness import EngineHarness
from tests.simulated_gpu.device import Counting, faults, used_bytes
from tests.simulated_gpu.test_generation import TOLERANCE, pixels

pytestmark = pytest.mark.simulated_gpu

NAMES = ("a", "b", "c", "d")
SIZE = 256
"""Size at which activations exceed all other allocations."""


@pytest.fixture(scope="module")
def gpu_model(flavour: Flavour) -> Components:
    return load(flavour, device="cuda", dtype="bfloat16")


def admitted(model: Components, *names: str) -> EngineHarness:
    """Return an engine in which these requests have made one step."""
    harness = EngineHarness(model, max_rows=64)
    for name in names:
        harness.submit(name, width=SIZE, height=SIZE, steps=3, seed=ord(name))
    harness.settle()
    harness.engine.step()
    return harness


def test_a_step_without_memory_is_repeated_with_half_the_rows(gpu_model: Components) -> None:
    expected = admitted(gpu_model, *NAMES)
    before, counting = used_bytes(), Counting()
    expected.engine.step()
    needed = counting.so_far.peak_bytes - before
    expected.run(len(NAMES))

    harness = admitted(gpu_model, *NAMES)
    with faults(free_bytes=int(0.7 * needed)):
        harness.engine.step()
    assert harness.engine.out_of_memory == 1
    assert sorted(harness.steps) == sorted(2 * NAMES)  # no request failed or lost a step
    harness.run(len(NAMES))
    assert harness.engine.out_of_memory == 1  # the bound is remembered
    for name in NAMES:
        (a,), (b,) = map(pixels, harness.pictures(name)), map(pixels, expected.pictures(name))
        assert np.abs(a - b).mean() < TOLERANCE


def test_without_memory_for_one_row_requests_fail_and_the_engine_goes_on(gpu_model: Components) -> None:
    harness = admitted(gpu_model, "a", "b")
    with faults(free_bytes=0):
        harness.engine.step()
    assert "OutOfMemoryError" in str(harness.error("a"))
    assert "OutOfMemoryError" in str(harness.error("b"))
    harness.submit("c")
    harness.run(3)
    assert harness.pictures("c")


def test_decoding_without_memory_is_repeated_in_tiles(gpu_model: Components) -> None:
    noise_BCHW = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0)).cuda().bfloat16()

    def decode(*, tiled: bool) -> torch.Tensor:
        with torch.no_grad():
            return latents.decode(gpu_model.vae, noise_BCHW, tiled=tiled)

    with faults(fail_after=20):
        decoded = first_that_fits(lambda: decode(tiled=False), lambda: decode(tiled=True))
    assert torch.equal(decoded.cpu(), decode(tiled=True).cpu())


@pytest.mark.parametrize("allocation", [0, 3, 50, 200])
def test_any_allocation_may_fail_in_a_step(gpu_model: Components, allocation: int) -> None:
    harness = admitted(gpu_model, "a", "b")
    with faults(fail_after=allocation):
        harness.engine.step()
    harness.run(2)
    assert harness.pictures("a")
    assert harness.pictures("b")


def test_a_lost_device_ends_the_step_loop(gpu_model: Components) -> None:
    harness = admitted(gpu_model, "a")
    with faults(lost=True), pytest.raises(torch.AcceleratorError):
        harness.engine.step()


ENGINE_PROCESS = """
from tests.simulated_gpu import device
device.attach()
import time
from longcat.logs import set_up_logging
from longcat.model.flavour import resolve
from service.config import ModelConfig
from service.process.engine_process import EngineProcess
from service.renderer import Renderer
from service.wire.limits import Limits
from service.wire.messages import GenerateCommand
from service.wire.schema import GenerateRequest
from longcat.model.tokenizer import plain_ids

set_up_logging("text")
flavour = resolve("embedded")
renderer = Renderer(ModelConfig(device="cuda"), flavour, max_rows=4)
limits = Limits.of_model(flavour, has_adapters=False)
request = limits.resolve(GenerateRequest(prompt="a cat", steps=2), plain_ids(renderer.model.tokenizer))
now = time.monotonic()
renderer.submit(GenerateCommand(id="a", request_id="a", request=request, submitted_at=now, deadline=now + 60), print)
with device.faults(lost=True):
    EngineProcess._make_steps(None, renderer, print)
"""


def test_a_lost_device_ends_the_engine_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENGINE_PROCESS],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "ending the engine process" in done.stderr
    assert "illegal memory access" in done.stderr
