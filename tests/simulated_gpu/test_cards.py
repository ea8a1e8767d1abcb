"""Cards of 16, 24 and 80 GB, served without options: the settings are chosen by memory, and twelve images fit at once.

The embedded model stands for the published one. A card's memory is scaled, so that the format which the published model gets
on the card is the best that the embedded model gets, too.
"""

import gc
import logging
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from longcat.adapter.modules import lora_targets
from longcat.model.flavour import Flavour, structure
from longcat.model.loading import Components
from longcat.model.memory.device import usable_bytes
from longcat.model.precision import Offload, Precision
from longcat.storage.opening import open_storage
from service.config import AdapterConfig, ModelConfig
from service.memory.choice import FORMATS, Capacity, Format, GivenSettings, choose
from service.memory.plan import plan
from service.memory.settings import workload_of
from service.renderer import Renderer
from service.wire.events import ErrorEvent, Event, ResultEvent
from service.wire.messages import GenerateCommand
from service.wire.schema import AdapterChoice, ResolvedRequest
from tests.conftest import serve
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put
from tests.service.http.replies import metric
from tests.simulated_gpu.device import BYTES_VARIABLE, GIB, card

pytestmark = pytest.mark.simulated_gpu

_INT8 = Precision.INT8_TORCHAO
CARDS = {
    16: Format(_INT8, _INT8, Offload.MODEL),
    24: Format(_INT8, _INT8, Offload.NONE),
    80: Format(Precision.NO_CHANGE, Precision.NO_CHANGE, Offload.NONE),
}
LEAST = Capacity(4, 64, 4)
"""The least capacity for which a format is preferred to the next one."""
ADAPTERS = ("a0", "a1", "a2", "a3")
IMAGES = 12
SCALED_CACHES = 4 * 2**20
"""Caches of the size that the embedded model fills: those of the published one are larger than all the embedded one has."""
SECONDS = 300


def scaled(gib: int, flavour: Flavour) -> int:
    """Return the memory on which the embedded model gets the format that the published one gets on a card."""
    wide = {"dtype": "bfloat16", "has_adapters": True, "max_pixels": None}
    published = choose(GivenSettings(), workload_of(structure("final"), **wide), usable_bytes(gib * GIB)).plan.workload
    found = Format(published.precision, published.text_encoder_precision, published.offload)
    assert found == CARDS[gib]
    load = workload_of(flavour, **wide)
    needed = [plan(replace(load, **made._asdict(), **LEAST._asdict())).most_bytes for made in FORMATS]
    place = FORMATS.index(found)
    usable = (needed[place] + needed[place - 1]) // 2 if place else 2 * needed[0]
    return math.ceil(usable / usable_bytes(10**6) * 10**6)


@pytest.fixture
def storage_uri(model: Components, tmp_path: Path) -> str:
    uri = f"file://{tmp_path / 'adapters'}"
    for seed, name in enumerate(ADAPTERS):
        weights = random_lora(lora_targets(model.transformer), seed=seed, rank=64, only=("",))
        put(open_storage(uri), model, tmp_path / "weights", name, weights)
    return uri


@pytest.mark.parametrize("gib", CARDS)
def test_twelve_images_at_once_fit_what_is_chosen(
    flavour: Flavour,
    storage_uri: str,
    tmp_path: Path,
    gib: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in (
        "service.memory.plan.PROMPT_CACHE_BYTES",
        "service.memory.plan.MODULATION_CACHE_BYTES",
        "service.engine.encoding.prompt_encoder.PROMPT_CACHE_BYTES",
        "longcat.sampling.forward.MODULATION_CACHE_BYTES",
    ):
        monkeypatch.setattr(name, SCALED_CACHES)
    caplog.set_level(logging.INFO, "lithograph")
    gc.collect()
    with card(scaled(gib, flavour)):
        config = AdapterConfig(uri=storage_uri, folder=tmp_path / "downloads")
        renderer = Renderer(ModelConfig(device="cuda"), flavour, adapters=config)
        assert renderer.registry is not None
        renderer.registry.poll()
        over = draw(renderer)
        assert renderer.settings.format == CARDS[gib]
        assert not [event for event in over if isinstance(event, ErrorEvent)]
        assert renderer.engine.out_of_memory == 0
    (choice,) = [vars(record)["fields"] for record in caplog.records if vars(record).get("event") == "memory_choice"]
    assert f"precision {CARDS[gib].precision}," in choice["chosen"]
    assert all(
        part in choice["chosen"] for part in (f"offload {CARDS[gib].offload}", " rows", "adapter slots of rank 64")
    )
    assert choice["also_fits"] or gib == 16


def draw(renderer: Renderer) -> list[Event]:
    """Return the last events of twelve requests that come at once: of two sizes, and each with an adapter."""
    over: list[Event] = []
    for number in range(IMAGES):
        request = ResolvedRequest(
            prompt=f"cat {number}", negative_prompt="", width=128, height=128 if number % 3 else 256, steps=2,
            guidance_scale=2.0, seed=number, num_images=1, cfg_renorm=True, rewrite_prompt=False, output_format="png",
            adapters=(AdapterChoice(name=ADAPTERS[number % len(ADAPTERS)]),),
        )  # fmt: skip
        command = GenerateCommand(
            id=str(number), request_id=str(number), request=request, submitted_at=time.monotonic(), deadline=math.inf
        )
        renderer.submit(
            command, lambda event: over.append(event) if isinstance(event, ResultEvent | ErrorEvent) else None
        )
    deadline = time.monotonic() + SECONDS
    while len(over) < IMAGES:
        renderer.step(0.05)
        assert time.monotonic() < deadline, over
    return over


def attach_in_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that this one starts have the simulated device."""
    startup = Path(__file__).parent / "startup"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(startup), os.environ.get("PYTHONPATH", "")]))


def test_two_gpus_draw_the_same_under_their_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attach_in_servers(monkeypatch)
    with (
        serve(tmp_path, "--devices", "0,1", cold=True) as server,
        httpx.Client(base_url=server.url, timeout=SECONDS) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        deadline = time.monotonic() + SECONDS
        while any(one["status"] != "ready" for one in client.get("/v1/info").json()["devices"]):
            assert time.monotonic() < deadline, server.log_text()
            time.sleep(0.2)
        devices = client.get("/v1/info").json()["devices"]
        request = {"prompt": "一只猫", "seed": 3, "steps": 2}
        replies = list(pool.map(lambda _: client.post("/generate", json=request), range(8)))
        assert [reply.status_code for reply in replies] == [200] * 8, server.log_text()
        assert [one["device"] for one in devices] == ["cuda:0", "cuda:1"]
        steps = [metric(client, "lithograph_step_seconds_count", device=f"cuda:{number}") for number in (0, 1)]
    assert len({reply.content for reply in replies}) == 1
    assert min(steps) > 2  # more than the warm-up's: both took part


def test_a_server_without_options_chooses_and_answers_all(
    flavour: Flavour, storage_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_in_servers(monkeypatch)
    monkeypatch.setenv(BYTES_VARIABLE, str(scaled(24, flavour)))
    with (
        serve(tmp_path, "--device", "cuda", "--adapters", storage_uri, cold=True) as server,
        httpx.Client(base_url=server.url, timeout=SECONDS) as client,
        ThreadPoolExecutor(IMAGES) as pool,
    ):
        requests = [
            {"prompt": f"cat {number}", "steps": 2, "adapters": [{"name": ADAPTERS[number % len(ADAPTERS)]}]}
            for number in range(IMAGES)
        ]
        replies = list(pool.map(lambda request: client.post("/generate", json=request), requests))
        assert [reply.status_code for reply in replies] == [200] * IMAGES, server.log_text()
        assert metric(client, "lithograph_out_of_memory_total") == 0
        (line,) = [line for line in server.log_text().splitlines() if '"memory_choice"' in line]
    assert "precision int8-torchao, text encoder int8-torchao, offload none" in line
    assert '"also_fits": ["' in line
