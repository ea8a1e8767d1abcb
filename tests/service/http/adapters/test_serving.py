"""Adapters over HTTP: published by one process, served by another, without a restart."""

import io
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.file import save_lora
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from service.wire.picture import read_recipe
from tests.conftest import run_lithograph, serve
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put
from tests.service.http.adapters.conftest import CAT, KEY, wait_until, with_adapters
from tests.service.http.replies import metric, problem
from tests.service.test_serving import wait_for_steps


def test_a_published_adapter_serves_without_a_restart_and_the_reply_proves_it(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    targets = lora_targets(model.transformer)
    plain = http.post("/generate", json=CAT)
    assert "x-adapters" not in plain.headers
    first = put(storage, model, tmp_path, "ink", random_lora(targets, seed=1))
    reply = http.post("/generate", json=with_adapters(("ink", 1.0)))  # at once, before any poll of storage
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-adapters"] == f"ink@1;scale=1;modules=20;sha256={first.weights.sha256}"
    assert reply.content != plain.content
    off = http.post("/generate", json=with_adapters(("ink", 0.0)))
    assert Image.open(io.BytesIO(off.content)).tobytes() == Image.open(io.BytesIO(plain.content)).tobytes()

    second = put(storage, model, tmp_path, "ink", random_lora(targets, seed=2))
    wait_until(http, "ink", version=2, desired_version=2, state="ready", sha256=second.weights.sha256)
    body = http.post("/generate", json=with_adapters(("ink", 1.0), response_format="json")).json()
    assert body["adapters"] == [
        {"name": "ink", "version": 2, "scale": 1.0, "sha256": second.weights.sha256, "modules": 20}
    ]
    assert http.post("/generate", json=with_adapters(("ink@1", 1.0))).headers["x-adapters"].startswith("ink@1;")


def test_mixed_adapters_more_of_them_than_slots_give_the_bytes_that_each_gives_alone(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    targets = lora_targets(model.transformer)
    for i in range(7):
        put(storage, model, tmp_path, f"mix{i}", random_lora(targets, seed=i, rank=2 + 2 * i))
    bodies = [with_adapters((f"mix{i}", 1.0), seed=i, steps=2 + i) for i in range(7)]
    bodies += [with_adapters(("mix0", 0.5), ("mix3", 1.5), ("mix5", -1.0), ("mix6", 0.3)), CAT]
    alone = [http.post("/generate", json=body).content for body in bodies]
    assert len(set(alone)) == len(bodies)
    with ThreadPoolExecutor(18) as pool:
        together = list(pool.map(lambda body: http.post("/generate", json=body).content, bodies * 2))
    assert together == alone * 2
    report = http.get("/v1/adapters").json()
    assert report["slots"] == len(report["slots_used"]) == 4
    assert metric(http, "lithograph_adapter_slot_evictions_total") > 3
    assert metric(http, "lithograph_adapter_slots") == metric(http, "lithograph_adapter_slots_used") == 4
    assert metric(http, "lithograph_adapter_requests_total", adapter="mix3") == 6


def test_a_running_picture_keeps_what_it_started_with(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    targets = lora_targets(model.transformer)
    put(storage, model, tmp_path, "swap", random_lora(targets, seed=1))
    body = with_adapters(("swap", 1.0), steps=40)
    expected = http.post("/generate", json=body)
    begin = metric(http, "lithograph_step_seconds_count")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(http.post, "/generate", json=body)
        wait_for_steps(http, begin + 3)
        put(storage, model, tmp_path, "swap", random_lora(targets, seed=2))
        wait_until(http, "swap", version=2)
        after = http.post("/generate", json=with_adapters(("swap", 1.0), steps=2))
        assert http.delete("/v1/adapters/swap", headers=KEY).status_code == 200
        assert not running.done()
        assert running.result().content == expected.content
        assert running.result().headers["x-adapters"] == expected.headers["x-adapters"]
    assert after.headers["x-adapters"].startswith("swap@2;")
    assert http.post("/generate", json=body).status_code == 404


def test_a_bad_adapter_fails_alone_with_its_reason(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    put(storage, model, tmp_path, "wide", random_lora(lora_targets(model.transformer), seed=1, rank=17))
    wait_until(http, "wide", state="refused", version=None)
    begin = metric(http, "lithograph_step_seconds_count")
    with ThreadPoolExecutor(1) as pool:
        good = pool.submit(http.post, "/generate", json=CAT | {"steps": 30})
        wait_for_steps(http, begin)
        refused = http.post("/generate", json=with_adapters(("wide", 1.0)))
        unknown = http.post("/generate", json=with_adapters(("nobody", 1.0)))
        assert good.result().status_code == 200
    assert (refused.status_code, "rank 17 exceeds" in refused.json()["error"]["message"]) == (422, True)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "adapter_not_found")
    assert unknown.json()["error"]["problems"][0]["field"] == "adapters.0.name"
    assert metric(http, "lithograph_adapter_refusals_total", reason="unfit") >= 1


def test_a_broken_entry_in_storage_is_its_own_error_and_hides_nothing(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    targets = lora_targets(model.transformer)
    for name in ("pipe", "loop"):
        put(storage, model, tmp_path, name, random_lora(targets, seed=1))
        latest = Path(httpx.URL(storage.uri).path, name, "latest")
        latest.unlink()
        os.mkfifo(latest) if name == "pipe" else latest.symlink_to("latest")
    shutil.copytree(latest.parent.with_name("pipe") / "1", latest.parent.with_name("pipe copy") / "1")
    for name, reason in (("pipe", "is not a regular file"), ("loop", "symbolic link")):
        wait_until(http, name, because=reason, state="refused", version=None, desired_version=None)
        reply = http.post("/generate", json=with_adapters((name, 1.0)))
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_adapter")
        assert reason in reply.json()["error"]["message"]
        assert http.post("/generate", json=with_adapters((f"{name}@1", 1.0))).status_code == 200
    new = put(storage, model, tmp_path, "after", random_lora(targets, seed=2))
    wait_until(http, "after", state="ready", sha256=new.weights.sha256, verified=False)
    assert http.post("/generate", json=with_adapters(("after", 1.0))).status_code == 200
    wait_until(http, "after", state="ready", verified=True)
    assert http.get("/v1/adapters").json()["reachable"]
    assert metric(http, "lithograph_adapter_refusals_total", reason="unreadable") == 2
    assert http.post("/v1/adapters/after@1/pin", headers=KEY).status_code == 422


@pytest.mark.parametrize(
    ("adapters", "field", "remedy"),
    [
        ([{"name": "Ink!"}], "adapters.0.name", ""),
        ([{"name": "ink", "scale": 11}], "adapters.0.scale", "at most 10"),
        ([{"name": "ink"}, {"name": "ink@1"}], "adapters.1.name", "once"),
        ([{"name": f"a{i}"} for i in range(5)], "adapters", "at most 4"),
        ("ink", "adapters", "give a list"),
        ([{"nmae": "ink"}], "adapters.0.nmae", "did you mean 'name'"),
    ],
)
def test_what_is_wrong_with_adapters_is_named(http: httpx.Client, adapters: object, field: str, remedy: str) -> None:
    assert remedy in problem(http.post("/generate", json=CAT | {"adapters": adapters}), field)["remedy"]


def test_without_a_setting_the_adapters_that_come_with_the_model_are_served(client: httpx.Client) -> None:
    unknown = client.post("/generate", json=with_adapters(("ink", 1.0)))
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "adapter_not_found")
    assert client.get("/v1/adapters").json()["storage"] == "embedded/adapters"
    assert client.get("/v1/info").json()["adapters"]["storage"] == "embedded/adapters"
    for name, expected in (("nope", "has no version in embedded/adapters"), ("turbo@9", "has no version 9 in")):
        missing = client.post("/generate", json={"prompt": "a cat", "adapters": [name]})
        assert missing.status_code == 404
        assert expected in missing.json()["error"]["message"]
        assert "file://" not in missing.text  # the path of the installation
    (turbo,) = client.get("/v1/adapters").json()["adapters"]
    assert (turbo["name"], turbo["sampling"]) == ("turbo", {"steps": 4, "guidance_scale": 1.0})
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["embedded", "turbo"]
    request = {"prompt": "一只猫", "seed": 3, "adapters": ["turbo"], "response_format": "json"}
    made = client.post("/generate", json=request).json()
    assert (made["request"]["steps"], made["request"]["guidance_scale"]) == (4, 1.0)
    given = client.post("/generate", json=request | {"steps": 3}).json()
    assert (given["request"]["steps"], given["request"]["guidance_scale"]) == (3, 1.0)
    alike = client.post("/v1/images/generations", json={"prompt": "一只猫", "model": "turbo", "seed": 3}).json()
    assert alike["data"][0]["b64_json"] == made["images"][0]["b64"]
    job = client.post("/generate", json=request | {"async": True})
    while (state := client.get(job.headers["location"]).json())["status"] in ("queued", "running"):
        time.sleep(0.05)
    assert (state["steps"], state["steps_made"]) == (4, 4)


def test_a_recipe_names_versions_and_makes_the_same_file_again(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    put(storage, model, tmp_path, "paint", random_lora(lora_targets(model.transformer), seed=5))
    picture = tmp_path / "picture.png"
    picture.write_bytes(http.post("/generate", json=with_adapters(("paint", 0.8))).content)
    recipe = read_recipe(picture)
    assert [(a.reference, a.scale) for a in recipe.adapters] == [("paint@1", 0.8)]
    missing = run_lithograph("generate", "--recipe", str(picture), "-o", "again.png", cwd=tmp_path)
    assert "give their storage with --adapters" in missing.stderr
    options = ("--adapters", storage.uri, "-o", "again.png")
    again = run_lithograph("generate", "--recipe", str(picture), *options, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()
    fresh = run_lithograph(
        "generate", "一只猫", "--seed", "3", "--steps", "3", "--adapter", "paint@1:0.8", *options, cwd=tmp_path
    )
    assert fresh.returncode == 0, fresh.stderr
    assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()


def test_imported_by_the_command_required_by_the_service_from_s3(
    model: Components, s3_endpoint: str, tmp_path: Path
) -> None:
    uri = f"s3://adapters/{tmp_path.name}"
    save_lora(random_lora(lora_targets(model.transformer), seed=1), tmp_path / "foreign.safetensors")
    options = ("--adapters", uri, "--adapters-endpoint-url", s3_endpoint, "--require-adapter", "style")
    options += ("--adapter-poll-seconds", "0.2")
    with serve(tmp_path, *options, wait=False) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        deadline = time.monotonic() + 240
        while "waiting for adapters style" not in server.log_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert http.get("/readyz").json() == {"status": "waiting for adapters"}
        imported = run_lithograph(
            "adapters", "import", "foreign.safetensors", "--name", "style", "--storage", uri,
            "--endpoint-url", s3_endpoint, cwd=tmp_path,
        )  # fmt: skip
        assert imported.returncode == 0, imported.stderr
        while http.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        reply = http.post("/generate", json=with_adapters(("style", 1.0)))
        assert reply.headers["x-adapters"].startswith("style@1;scale=1;modules=20;")
        listed = run_lithograph(
            "adapters", "list", "--json", "--storage", uri, "--endpoint-url", s3_endpoint, cwd=tmp_path
        )
        assert json.loads(listed.stdout)[0]["name"] == "style"


def test_requests_that_wait_for_slots_time_out_without_holding_any(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    targets = lora_targets(model.transformer)
    for i in range(5):
        put(storage, model, tmp_path, f"hold{i}", random_lora(targets, seed=i))
    holders = [(f"hold{i}", 1.0) for i in range(4)]
    begin = metric(http, "lithograph_step_seconds_count")
    holding = http.post("/generate", json=with_adapters(*holders, steps=100, num_images=2) | {"async": True})
    wait_for_steps(http, begin + 1)
    waiting = http.post("/generate", json=with_adapters(("hold4", 1.0), timeout_seconds=0.5))
    passing = http.post("/generate", json=CAT)
    assert (waiting.status_code, passing.status_code) == (504, 200)
    http.delete(holding.headers["location"])
    assert http.post("/generate", json=with_adapters(("hold4", 1.0))).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/generate", {"adapters": [{"name": "missing"}]}),
        ("/generate", {"adapters": [{"name": "missing@3"}], "previews": True}),
        ("/v1/images/generations", {"model": "missing"}),
        ("/v1/images/generations", {"model": "missing", "partial_images": 2}),
        ("/v1/images/generations", {"adapters": [{"name": "missing"}]}),
        ("/v1/images/generations", {"model": "No Such Model"}),
    ],
)
def test_a_stream_of_an_unknown_adapter_is_a_404(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    replies = [http.post(path, json=CAT | fields | {"stream": stream}) for stream in (True, False)]
    assert [reply.status_code for reply in replies] == [404, 404], replies[0].text
    streamed, plain = (reply.json()["error"] for reply in replies)
    assert streamed["message"] == plain["message"]
    assert replies[0].headers["x-request-id"]


@pytest.mark.parametrize("stream", [True, False])
def test_an_empty_model_is_the_base(http: httpx.Client, stream: bool) -> None:
    reply = http.post("/v1/images/generations", json={"prompt": "a cat", "steps": 1, "model": "", "stream": stream})
    assert reply.status_code == 200
