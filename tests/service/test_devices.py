"""Several devices in one server: two engines on the cores of this machine."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from longcat.adapter.modules import lora_targets
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from tests.conftest import RunningServer, run_lithograph, serve
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put
from tests.service.family import Family
from tests.service.http.replies import metric
from tests.service.test_serving import events

DEVICES = ("cpu:0", "cpu:1")
CAT = {"prompt": "一只猫", "seed": 3, "steps": 6}
SECONDS = 120


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return open_storage(tmp_path_factory.mktemp("adapters").as_uri())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, storage: Storage, model: Components) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("two")
    put(storage, model, folder, "house", random_lora(lora_targets(model.transformer), seed=9))
    options = ("--adapters", storage.uri, "--adapter-poll-seconds", "0.3", "--require-adapter", "house")
    with serve(folder, "--devices", "cpu,cpu", *options) as running:
        yield running


@pytest.fixture
def both(two: RunningServer) -> Iterator[httpx.Client]:
    """Return a client of the server, all of whose engines are ready."""
    with httpx.Client(base_url=two.url, timeout=SECONDS) as client:
        wait_for(lambda: statuses(client) == ["ready", "ready"])
        yield client


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def statuses(client: httpx.Client) -> list[str]:
    return [device["status"] for device in client.get("/v1/info").json()["devices"]]


def steps_of(client: httpx.Client) -> list[float]:
    return [metric(client, "lithograph_step_seconds_count", device=device) for device in DEVICES]


def slots_of(client: httpx.Client, name: str) -> list[str]:
    """Return the devices that hold an adapter."""
    used = client.get("/v1/adapters").json()["slots_used"]
    return sorted(slot["device"] for slot in used if slot["adapter"].partition("@")[0] == name)


def together(client: httpx.Client, bodies: list[dict[str, object]]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: client.post("/generate", json=body), bodies))


def kill_one(server: RunningServer, client: httpx.Client) -> None:
    """Kill an engine process, and wait until that was noticed."""
    restarts = metric(client, "lithograph_engine_restarts_total")
    Family(server).engines[0].kill()
    wait_for(lambda: metric(client, "lithograph_engine_restarts_total") > restarts)


def test_both_engines_work_and_give_the_bytes_of_one(client: httpx.Client, both: httpx.Client) -> None:
    # ``client`` is that of a server with one engine, which uses all cores.
    bodies: list[dict[str, object]] = [
        CAT | {"seed": i, "steps": 3 + i, "guidance_scale": 1 + i / 2, "width": 64 * (1 + i % 2)} for i in range(6)
    ]
    expected = [client.post("/generate", json=body).content for body in bodies]
    before = steps_of(both)
    assert [reply.content for reply in together(both, bodies)] == expected
    assert all(now > earlier for now, earlier in zip(steps_of(both), before, strict=True))
    for device in DEVICES:
        assert metric(both, "lithograph_ready", device=device) == 1
        assert metric(both, "lithograph_device_memory_bytes", device=device, kind="used") > 2**27
        assert metric(both, "lithograph_engine_heartbeat_timestamp_seconds", device=device) > time.time() - SECONDS


def test_info_names_each_device(both: httpx.Client) -> None:
    info = both.get("/v1/info").json()
    assert [device["device"] for device in info["devices"]] == list(DEVICES)
    assert [device["slots"] for device in info["devices"]] == [8, 8]
    assert info["status"] == "ready"


def test_a_published_adapter_is_served_by_both(
    both: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    put(storage, model, tmp_path, "ink", random_lora(lora_targets(model.transformer), seed=1))
    body = CAT | {"adapters": [{"name": "ink"}]}
    replies = together(both, [body | {"seed": i % 2} for i in range(8)])
    assert {reply.status_code for reply in replies} == {200}, replies[0].text
    assert len({reply.content for reply in replies}) == 2
    assert slots_of(both, "ink") == list(DEVICES)
    assert both.get("/v1/adapters").json()["slots"] == 16


def test_commands_about_adapters_reach_both_and_a_process_that_starts_later(
    two: RunningServer, both: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    for name in ("pinned", "unloaded"):
        put(storage, model, tmp_path, name, random_lora(lora_targets(model.transformer), seed=2))
        assert both.post(f"/v1/adapters/{name}/load").status_code == 200
    assert both.post("/v1/adapters/pinned/pin").status_code == 200
    assert both.post("/v1/adapters/unloaded/unload").status_code == 200
    for _ in range(2):
        wait_for(lambda: slots_of(both, "pinned") == list(DEVICES))
        body = CAT | {"adapters": [{"name": "unloaded"}]}
        assert {reply.status_code for reply in together(both, [body] * 6)} == {404}
        kill_one(two, both)
        wait_for(lambda: statuses(both) == ["ready", "ready"])


def test_a_killed_engine_loses_its_own_requests_alone(two: RunningServer, both: httpx.Client) -> None:
    before = steps_of(both)
    long = CAT | {"steps": 60, "num_images": 2}
    expected = both.post("/generate", json=CAT).content
    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(both.post, "/generate", json=long | {"seed": seed}) for seed in range(3)]
        stream = pool.submit(both.post, "/generate", json=long | {"stream": True, "seed": 4})
        wait_for(lambda: all(now > earlier + 3 for now, earlier in zip(steps_of(both), before, strict=True)))
        kill_one(two, both)
        for _ in range(5):  # the other one takes requests all the while
            assert both.get("/readyz").status_code == 200
            assert both.post("/generate", json=CAT).status_code == 200
        replies = [request.result() for request in under_way]
        last, data = list(events(stream.result()))[-1]
    outcomes = [reply.status_code for reply in replies] + [200 if last == "result" else 503]
    assert set(outcomes) == {200, 503}
    for reply in replies:
        if reply.status_code == 503:
            assert reply.json()["error"]["code"] == "engine_ended"
            assert int(reply.headers["retry-after"]) >= 1
    if last == "error":
        error = data["error"]
        assert isinstance(error, dict)
        assert error["code"] == "engine_ended"
    wait_for(lambda: statuses(both) == ["ready", "ready"])
    assert {reply.content for reply in together(both, [CAT] * 4)} == {expected}


def test_jobs_and_their_cancellation_work_on_both(both: httpx.Client) -> None:
    before = steps_of(both)
    bodies = [CAT | {"async": True, "seed": seed, "steps": 30} for seed in range(4)]
    jobs = [both.post("/generate", json=body).json()["id"] for body in bodies]
    wait_for(lambda: all(now > earlier for now, earlier in zip(steps_of(both), before, strict=True)))
    for job in jobs[2:]:
        assert both.delete(f"/v1/jobs/{job}").json()["status"] in ("cancelled", "succeeded")
    wait_for(lambda: {both.get(f"/v1/jobs/{job}").json()["status"] for job in jobs[:2]} == {"succeeded"})
    wait_for(lambda: metric(both, "lithograph_active_rows") == 0)


def test_both_options_at_once_are_refused(tmp_path: Path) -> None:
    refused = run_lithograph("serve", "--device", "cpu", "--devices", "cpu,cpu", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--device and --devices are both given; give one of the two" in refused.stderr
