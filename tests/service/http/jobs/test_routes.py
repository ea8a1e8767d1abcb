"""Asynchronous jobs: their limits, their end, and its webhooks."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from standardwebhooks import Webhook

from longcat.errors import UserError
from service.http.jobs.settings import JobConfig
from tests.conftest import RunningServer, serve, wait_until_ready
from tests.service.family import Family
from tests.service.http.jobs.conftest import SECRET, Receiver
from tests.service.http.replies import metric, problem
from tests.service.test_serving import (
    APPLE,
    LONG,
    assert_stopped_early,
    steps_made,
    wait_for_steps,
    wait_until_not_ready,
)


def submit(http: httpx.Client, **fields: Any) -> str:
    reply = http.post("/generate", json=APPLE | {"async": True} | fields)
    assert reply.status_code == 202, reply.text
    assert reply.headers["location"] == f"/v1/jobs/{reply.json()['id']}"
    return reply.headers["location"]


def wait_until_over(http: httpx.Client, location: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        job: dict[str, Any] = http.get(location).json()
        if job["status"] not in ("queued", "running"):
            return job
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_job_gives_what_a_plain_request_gets(http: httpx.Client) -> None:
    plain = http.post("/generate", json=APPLE)
    location = submit(http)
    job = wait_until_over(http, location)
    assert (job["status"], job["steps_made"], job["steps"], job["error"], job["result"]) == (
        "succeeded", 3, 3, None, None,
    )  # fmt: skip
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]
    result = http.get(job["result_url"])
    assert result.content == plain.content
    assert result.headers["content-type"] == "image/png"
    assert result.headers["x-seed"] == plain.headers["x-seed"]


def test_with_json_the_job_carries_its_pictures(http: httpx.Client) -> None:
    location = submit(http, response_format="json", num_images=2)
    job = wait_until_over(http, location)
    direct = http.post("/generate", json=APPLE | {"response_format": "json", "num_images": 2}).json()
    assert job["result"]["images"] == direct["images"]
    assert job["result"]["request_id"] == job["id"]
    assert http.get(f"{location}/result").json()["images"] == direct["images"]


def test_a_cancelled_job_makes_no_more_steps_and_one_that_is_over_is_removed(http: httpx.Client) -> None:
    begin = steps_made(http)
    location = submit(http, **LONG)
    wait_for_steps(http, begin + 2)
    early = http.get(f"{location}/result")
    assert (early.status_code, early.json()["error"]["code"], early.headers["retry-after"]) == (
        409,
        "not_finished",
        "1",
    )
    running = http.get(location)
    assert (running.json()["status"], running.headers["retry-after"]) == ("running", "1")
    assert running.json()["steps_made"] > 0
    assert http.delete(location).json()["status"] == "cancelled"
    assert_stopped_early(http, begin)
    assert http.get(location).json()["status"] == "cancelled"
    assert http.get(f"{location}/result").status_code == 410
    assert http.delete(location).status_code == 200
    gone = http.get(location)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "job_not_found")
    assert http.delete(location).status_code == 404


def test_requests_for_a_job_that_another_request_removes_find_it_or_do_not(http: httpx.Client) -> None:
    for _ in range(8):
        location = submit(http, width=64, height=64, steps=1)
        wait_until_over(http, location)
        requests = [("DELETE", location), ("GET", location), ("GET", f"{location}/result")] * 16
        with ThreadPoolExecutor(len(requests)) as pool:
            replies = list(
                pool.map(lambda request: httpx.request(request[0], f"{http.base_url}{request[1]}"), requests)
            )
        assert {reply.status_code for reply in replies} <= {200, 404}
        assert sum(reply.is_success for reply in replies if reply.request.method == "DELETE") == 1


def test_a_job_that_is_cancelled_at_once_is_never_drawn(http: httpx.Client) -> None:
    begin = steps_made(http)
    location = submit(http, **LONG)
    assert http.delete(location).json()["status"] == "cancelled"
    assert metric(http, "lithograph_requests_in_progress") == 0
    assert http.post("/generate", json=APPLE | {"steps": 10}).status_code == 200
    assert steps_made(http) - begin < 10 + 10, "of a hundred"


def test_a_failed_job_has_its_reason(http: httpx.Client) -> None:
    location = submit(http, **LONG, timeout_seconds=0.3)
    job = wait_until_over(http, location)
    assert (job["status"], job["error"]["code"], job["result_url"]) == ("failed", "timeout", None)
    result = http.get(f"{location}/result")
    assert (result.status_code, result.json()["error"]["code"]) == (504, "timeout")
    assert metric(http, "lithograph_jobs_total", status="504") >= 1


def test_jobs_under_way_count_as_requests_and_those_over_make_room(http: httpx.Client) -> None:
    long = [submit(http, **LONG) for _ in range(3)]
    refused = http.post("/generate", json=APPLE | {"async": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as ai:
        with pytest.raises(openai.RateLimitError) as busy:
            ai.images.generate(prompt="a red apple")
        assert (busy.value.type, busy.value.code) == ("rate_limit_error", "busy")
        assert int(busy.value.response.headers["retry-after"]) >= 1
    for location in long:
        http.delete(location)
    finished = [submit(http) for _ in range(3)]
    for location in finished:
        wait_until_over(http, location)
    assert [http.get(location).status_code for location in (*long, *finished)] == [404, 404, 200, 200, 200, 200]


@pytest.mark.parametrize(
    ("fields", "name", "remedy"),
    [
        ({"stream": True}, "stream", "leave out stream or async"),
        ({"async": False, "webhook_url": "http://127.0.0.1/"}, "webhook_url", '"async": true'),
        ({"webhook_url": "http://127.0.0.1:1/"}, "webhook_url", "give http:// or https:// and one of 127.0.0.1:"),
        ({"webhook_url": "http://169.254.169.254/"}, "webhook_url", "one of 127.0.0.1:"),
        ({"webhook_url": "ftp://127.0.0.1/"}, "webhook_url", "one of 127.0.0.1:"),
        ({"webhook_url": "http://[::1"}, "webhook_url", "one of 127.0.0.1:"),
        ({"webhook_url": " http://127.0.0.1/"}, "webhook_url", "without credentials, spaces and control characters"),
        ({"async": "yes"}, "async", "give true or false"),
        ({"as_job": True}, "as_job", "known fields: prompt"),
    ],
)
def test_what_is_wrong_with_a_job_is_named(http: httpx.Client, fields: dict[str, Any], name: str, remedy: str) -> None:
    reply = http.post("/generate", json=APPLE | {"async": True} | fields)
    assert remedy in next(p["remedy"] for p in reply.json()["error"]["problems"] if p["field"] == name)


def test_a_webhook_with_credentials_or_without_permission_is_refused(
    http: httpx.Client, client: httpx.Client, receiver: Receiver
) -> None:
    credentials = receiver.url.replace("127.0.0.1", "me:you@127.0.0.1")
    body = APPLE | {"async": True, "webhook_url": credentials}
    assert "without credentials" in problem(http.post("/generate", json=body), "webhook_url")["remedy"]
    body["webhook_url"] = receiver.url
    assert "--webhook-secret" in problem(client.post("/generate", json=body), "webhook_url")["remedy"]
    assert not receiver.heard


def test_a_webhook_is_signed_and_tried_again_until_it_arrives(http: httpx.Client, receiver: Receiver) -> None:
    receiver.answers = [500, 302]
    location = submit(http, webhook_url=receiver.url, response_format="json")
    receiver.wait(3)
    told = [Webhook(SECRET).verify(body, headers) for headers, body in receiver.heard]
    job = wait_until_over(http, location)
    assert told[0]["type"] == "job.succeeded"
    assert told[0]["data"] == job | {"result": None}  # webhooks contain no pictures
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert {body for _, body in receiver.heard} == {receiver.heard[0][1]}
    assert receiver.heard[0][0]["content-type"] == "application/json"


def test_410_stops_the_retries_of_a_webhook_and_failed_jobs_send_one(http: httpx.Client, receiver: Receiver) -> None:
    receiver.answers = [410]
    submit(http, **LONG, timeout_seconds=0.3, webhook_url=receiver.url)
    receiver.wait(1)
    location = submit(http, **LONG, webhook_url=receiver.url)
    http.delete(location)
    receiver.wait(2)
    told = [json.loads(body) for _, body in receiver.heard]
    assert [(event["type"], event["data"]["status"]) for event in told] == [
        ("job.failed", "failed"),
        ("job.cancelled", "cancelled"),
    ]
    assert told[0]["data"]["error"]["code"] == "timeout"


def test_jobs_have_their_time_and_sigterm_waits_for_them_and_their_webhooks(tmp_path: Path, receiver: Receiver) -> None:
    options = ("--job-ttl-seconds", "1", "--webhook-secret", SECRET, "--webhook-host", "127.0.0.1:*")
    with serve(tmp_path, *options) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        family = psutil.Process(server.process.pid).children(recursive=True)
        location = submit(http)
        deadline = time.monotonic() + 60
        while http.get(location).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert http.get(location).json()["error"]["code"] == "job_not_found"

        receiver.answers = [503, 503]
        begin = steps_made(http)
        submit(http, steps=60, webhook_url=receiver.url)
        wait_for_steps(http, begin)
        server.process.send_signal(signal.SIGTERM)
        assert wait_until_not_ready(http) == "draining"
        refused = http.post("/generate", json=APPLE | {"async": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert server.process.wait(timeout=60) == 0
        assert len(receiver.heard) == 3
        assert Webhook(SECRET).verify(receiver.heard[2][1], receiver.heard[2][0])["type"] == "job.succeeded"
        assert not psutil.wait_procs(family, timeout=60)[1]
        assert "Traceback" not in server.log_text(), server.log_text()


def test_when_the_engine_dies_its_jobs_have_failed(running: RunningServer, http: httpx.Client) -> None:
    begin = steps_made(http)
    location = submit(http, **LONG)
    wait_for_steps(http, begin)
    Family(running).engine.kill()
    job = wait_until_over(http, location)
    assert (job["status"], job["error"]["code"]) == ("failed", "engine_ended")
    wait_until_ready(running)
    assert wait_until_over(http, submit(http))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"webhook_secret": SECRET}, "give both --webhook-secret and --webhook-host"),
        ({"webhook_hosts": ("example.com",)}, "give both --webhook-secret and --webhook-host"),
        ({"webhook_secret": "whsec_c2hvcnQ=", "webhook_hosts": ("a",)}, "openssl rand -base64 32"),
        ({"webhook_secret": "no base64 at all!", "webhook_hosts": ("a",)}, "openssl rand -base64 32"),
        ({"most": 0}, "most = 0: too small; give at least 1"),
        ({"ttl_seconds": 0.5}, "ttl_seconds = 0.5: too small"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as caught:
        JobConfig(**options)
    assert "c2hvcnQ" not in str(caught.value), "a secret in an error message"
    assert SECRET not in repr(JobConfig(webhook_secret=SECRET, webhook_hosts=("a",)))
