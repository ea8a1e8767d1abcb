"""Two servers over one storage of jobs: kill -9, restarts, keys, webhooks, outages."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from longcat.storage.files import FileStorage
from service.access.keys import ApiKeys, make_key
from tests.conftest import RunningServer, serve
from tests.service.family import Family
from tests.service.http.jobs.conftest import SECRET, Receiver
from tests.service.http.jobs.test_routes import submit, wait_until_over
from tests.service.http.replies import metric
from tests.service.test_serving import APPLE

_LEASE_SECONDS = "2"
Clients = dict[str, str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lasting")


@pytest.fixture(scope="module")
def secrets(folder: Path) -> Clients:
    """Two keys by name, whose hashes are in the servers' file."""
    made = {name: make_key(name, roles=["generate"], adapters=None) for name in ("team-a", "team-b")}
    keys = ApiKeys(keys=tuple(key for _, key in made.values()))
    (folder / "keys.json").write_text(keys.model_dump_json())
    return {name: secret for name, (secret, _) in made.items()}


@pytest.fixture(scope="module")
def options(folder: Path, secrets: Clients) -> tuple[str, ...]:
    assert secrets
    return (
        "--jobs-storage", (folder / "jobs").as_uri(), "--jobs-lease-seconds", _LEASE_SECONDS, "--webhook-secret", SECRET,
        "--webhook-host", "127.0.0.1:*", "--api-keys-file", str(folder / "keys.json"), "--metrics-key", "none",
    )  # fmt: skip


@pytest.fixture(scope="module")
def second(folder: Path, options: tuple[str, ...]) -> Iterator[RunningServer]:
    with serve(folder, *options) as running:
        yield running


def client(server: RunningServer, secret: str) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60, headers={"Authorization": f"Bearer {secret}"})


def test_a_killed_servers_jobs_are_finished_by_another_with_the_same_pictures_and_their_webhook(
    folder: Path, options: tuple[str, ...], second: RunningServer, secrets: Clients, receiver: Receiver
) -> None:
    long = {"steps": 60, "seed": 5, "adapters": ["turbo"], "response_format": "json"}
    with (
        serve(folder, *options) as first,
        client(first, secrets["team-a"]) as one,
        client(second, secrets["team-a"]) as two,
        client(second, secrets["team-b"]) as stranger,
    ):
        done = submit(one)
        assert wait_until_over(two, done)["status"] == "succeeded"
        picture = two.get(f"{done}/result").content
        jobs = [submit(one, **long, webhook_url=receiver.url), submit(one, **long, num_images=2)]
        assert two.get(jobs[0]).json()["status"] in ("queued", "running")
        for path in (done, f"{done}/result", jobs[0]):
            assert stranger.get(path).json()["error"]["code"] == "job_not_found"
            assert stranger.delete(path.removesuffix("/result")).status_code == 404
        cancelled = submit(one, **long)
        assert two.delete(cancelled).json()["status"] == "cancelled"
        assert one.get(cancelled).json()["status"] == "cancelled"
        Family(first).kill()

        reports = [wait_until_over(two, job) for job in jobs]
        assert [report["status"] for report in reports] == ["succeeded", "succeeded"]
        direct = two.post("/generate", json=APPLE | long).json()
        assert reports[0]["result"]["images"] == direct["images"]
        assert reports[1]["result"]["images"][0] == direct["images"][0]
        assert reports[0]["result"]["request"]["adapters"] == [{"name": "turbo@1", "scale": 1.0}]
        assert metric(two, "lithograph_jobs_taken_total") >= 2, "and the cancelled one, to tidy up"
        receiver.wait(1)
        headers, body = receiver.heard[0]
        event = Webhook(SECRET).verify(body, headers)
        job_id = jobs[0].rpartition("/")[2]
        assert (event["id"], headers["webhook-id"]) == (f"msg_{job_id}", f"msg_{job_id}")
        assert event["data"]["status"] == "succeeded"

        assert two.get(f"{done}/result").content == picture, "of the server that is gone"
        assert two.post("/generate", json=APPLE).content == picture
        assert two.get(cancelled).json()["status"] == "cancelled"
        for job in (done, cancelled, *jobs):
            assert two.delete(job).status_code == 200
            assert two.get(job).status_code == 404
    deadline = time.monotonic() + 30
    while left := [entry.key for entry in FileStorage(folder / "jobs").list() if "/" in entry.key]:
        assert time.monotonic() < deadline, left


def test_what_is_stored_holds_names_of_keys_and_no_key(folder: Path, second: RunningServer, secrets: Clients) -> None:
    with client(second, secrets["team-a"]) as http:
        job = submit(http)
        wait_until_over(http, job)
        stored = {path.relative_to(folder / "jobs").as_posix(): path.read_bytes() for path in files(folder)}
        assert f"requests{job.removeprefix('/v1/jobs')}" in stored
        assert json.loads(stored[f"requests{job.removeprefix('/v1/jobs')}"])["command"]["key"] == "team-a"
        assert not any(secrets["team-a"].encode() in content for content in stored.values())
        http.delete(job)


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "jobs").rglob("*") if path.is_file()]


def test_when_the_engine_dies_a_lasting_job_is_generated_again(second: RunningServer, secrets: Clients) -> None:
    with client(second, secrets["team-a"]) as http:
        job = submit(http, steps=60, seed=8)
        while http.get(job).json()["status"] != "running":
            time.sleep(0.05)
        Family(second).engine.kill()
        assert wait_until_over(http, job)["status"] == "succeeded"
        assert (
            http.get(f"{job}/result").content == http.post("/generate", json=APPLE | {"steps": 60, "seed": 8}).content
        )


def test_a_storage_that_is_down_refuses_jobs_with_its_reason_and_ends_none(
    folder: Path, second: RunningServer, secrets: Clients
) -> None:
    def post(http: httpx.Client) -> httpx.Response:
        return http.post("/generate", json=APPLE | {"async": True})

    def error(reply: httpx.Response) -> dict[str, Any]:
        assert reply.status_code == 503, reply.text
        found: dict[str, Any] = reply.json()["error"]
        return found

    with client(second, secrets["team-a"]) as http:
        done, running = submit(http), submit(http, steps=60)
        wait_until_over(http, done)
        lease = folder / "jobs" / "open" / done.rpartition("/")[2]
        deadline = time.monotonic() + 60
        while lease.exists():  # until it is gone, its server answers without storage
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shutil.move(folder / "jobs", folder / "away")
        (folder / "jobs").write_text("no directory")
        try:
            refused = error(post(http))
            assert refused["code"] == "storage_unreachable"
            assert "jobs" in refused["message"]
            assert error(http.get(done))["code"] == "storage_unreachable"
            assert http.get(running).json()["status"] in ("queued", "running", "succeeded")
            assert http.post("/generate", json=APPLE).status_code == 200
            time.sleep(float(_LEASE_SECONDS))
        finally:
            (folder / "jobs").unlink()
            shutil.move(folder / "away", folder / "jobs")
        assert wait_until_over(http, running)["status"] == "succeeded"
        assert http.get(f"{running}/result").status_code == 200
        assert metric(http, "lithograph_job_storage_errors_total") > 0
        assert submit(http)
