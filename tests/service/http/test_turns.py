"""Priorities and limits of keys over HTTP, in the error shape of each API."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import lithograph
from service.access.keys import ApiKeys, make_key
from tests.conftest import RunningServer, run_lithograph, serve
from tests.service.http.replies import metric

CAT = {"prompt": "一只猫", "seed": 3, "steps": 2, "width": 64, "height": 64}
COST = 64 * 64 * 2 * 2
KEYS: dict[str, dict[str, Any]] = {
    "one": {"requests": 1},
    "slow": {"pixel_steps_per_minute": COST + 1},
    "urgent": {"priority": "high"},
    "modest": {"priority": "low"},
    "ops": {},
}


class LimitedServer:
    """A running server whose keys have limits."""

    def __init__(self, server: RunningServer, secrets: dict[str, str], file: Path) -> None:
        self.url, self.secrets, self.file = server.url, secrets, file

    def post(self, key: str, path: str = "/generate", **fields: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.secrets[key]}"}
        return httpx.post(self.url + path, json=CAT | fields, headers=headers, timeout=120)

    def metric(self, name: str, **labels: str) -> float:
        headers = {"Authorization": f"Bearer {self.secrets['ops']}"}
        with httpx.Client(base_url=self.url, headers=headers) as http:
            return metric(http, name, **labels)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LimitedServer]:
    folder = tmp_path_factory.mktemp("limited")
    known, secrets = ApiKeys(), {}
    for name, allowance in KEYS.items():
        roles = ["admin" if name == "ops" else "generate"]
        secrets[name], entry = make_key(name, roles=roles, adapters=None, **{"priority": "normal"} | allowance)
        known = known.with_key(entry)
    file = folder / "keys.json"
    file.write_text(known.to_json())
    with serve(folder, "--api-keys-file", str(file), "--max-rows", "2") as server:
        yield LimitedServer(server, secrets, file)


def test_requests_at_a_time_are_limited_for_jobs_and_streams_alike(limited: LimitedServer) -> None:
    job = limited.post("one", steps=100, num_images=4, **{"async": True})
    assert job.status_code == 202
    before = limited.metric("lithograph_api_key_refusals_total", reason="requests")
    for fields in ({}, {"stream": True}, {"async": True}):
        refused = limited.post("one", **fields)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        error = refused.json()["error"]
        assert (error["code"], error["problems"][0]["code"]) == ("rate_limit_exceeded", "key_requests_at_a_time")
    assert limited.metric("lithograph_api_key_refusals_total", reason="requests") == before + 3
    assert limited.post("urgent").status_code == 200  # another key
    headers = {"Authorization": f"Bearer {limited.secrets['one']}"}
    httpx.delete(limited.url + job.headers["location"], headers=headers).raise_for_status()
    assert limited.post("one").status_code == 200


def test_pixel_steps_a_minute_are_limited_in_openai_s_shape(limited: LimitedServer) -> None:
    assert limited.post("slow").status_code == 200
    refused = limited.post("slow")
    assert refused.status_code == 429
    assert 50 <= int(refused.headers["retry-after"]) <= 61
    client = openai.OpenAI(base_url=f"{limited.url}/v1", api_key=limited.secrets["slow"], max_retries=0)
    with pytest.raises(openai.RateLimitError) as raised:
        client.images.generate(prompt="a cat", size="64x64", extra_body={"steps": 2})
    body = raised.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(raised.value.response.headers["retry-after"]) >= 1


def test_a_priority_above_the_keys_highest_is_refused(limited: LimitedServer) -> None:
    refused = limited.post("modest", priority="normal")
    assert refused.status_code == 403
    (problem,) = refused.json()["error"]["problems"]
    assert (problem["code"], problem["field"]) == ("key_lacks_priority", "priority")
    assert limited.post("modest").status_code == 200
    assert limited.post("urgent", priority="urgent").status_code == 422
    client = openai.OpenAI(base_url=f"{limited.url}/v1", api_key=limited.secrets["modest"], max_retries=0)
    with pytest.raises(openai.PermissionDeniedError):
        client.images.generate(prompt="a cat", size="64x64", extra_body={"steps": 2, "priority": "high"})


def test_a_high_request_overtakes_a_running_picture_which_comes_out_the_same(limited: LimitedServer) -> None:
    seconds: dict[str, float] = {}

    def timed(name: str, key: str, **fields: Any) -> httpx.Response:
        reply = limited.post(key, **fields)
        seconds[name] = time.monotonic()
        return reply

    alone = limited.post("modest", steps=60)
    with ThreadPoolExecutor() as pool:  # a server of two rows has place for one picture with guidance
        long = pool.submit(timed, "long", "modest", steps=60)
        deadline = time.monotonic() + 60
        while limited.metric("lithograph_active_rows") < 2:
            assert time.monotonic() < deadline
        high = pool.submit(timed, "high", "urgent", priority="high")
    assert high.result().status_code == long.result().status_code == 200
    assert seconds["high"] < seconds["long"]
    assert long.result().content == alone.content
    assert limited.metric("lithograph_parkings_total") >= 1
    assert limited.metric("lithograph_parked_pictures") == 0


def test_the_client_and_the_command_line_send_priorities(limited: LimitedServer, tmp_path: Path) -> None:
    with lithograph.Client(limited.url, api_key=limited.secrets["urgent"]) as client:
        assert client.generate("a cat", steps=1, width=64, height=64, priority="high").images
    key_file = tmp_path / "key"
    key_file.write_text(limited.secrets["modest"])
    options = ("--server", limited.url, "--api-key-file", str(key_file), "--steps", "1")
    refused = run_lithograph("generate", "a cat", *options, "--priority", "high", cwd=tmp_path)
    assert refused.returncode != 0
    assert "does not allow this priority" in refused.stderr
    assert run_lithograph("generate", "a cat", *options, "--priority", "low", cwd=tmp_path).returncode == 0
    here = run_lithograph("generate", "a cat", "--priority", "low", cwd=tmp_path)
    assert (here.returncode, "--priority needs --server" in here.stderr) == (2, True)
