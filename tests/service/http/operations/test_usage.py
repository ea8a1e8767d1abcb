"""``GET /v1/usage``: who sees what, and exact counts while engine processes are killed."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import lithograph
from service.access.keys import ApiKeys, make_key
from tests.conftest import RunningServer, run_lithograph, serve
from tests.service.family import Family
from tests.service.http.replies import metric

CAT = {"prompt": "一只猫", "seed": 3, "steps": 2, "width": 64, "height": 64}
COST = 64 * 64 * 2 * 2
ROLES = {"team-a": ["generate"], "team-b": ["generate"], "ops": ["admin"]}


class Counting:
    """Servers with keys and one directory of usage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.secrets = folder, dict[str, str]()
        known = ApiKeys()
        for name, roles in ROLES.items():
            self.secrets[name], entry = make_key(name, roles=roles, adapters=None)
            known = known.with_key(entry)
        (folder / "keys.json").write_text(known.to_json())
        self.options = ("--api-keys-file", str(folder / "keys.json"), "--state-dir", str(folder / "state"))

    def client(self, server: RunningServer, name: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.secrets[name]}"}
        return httpx.Client(base_url=server.url, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Counting:
    return Counting(tmp_path_factory.mktemp("counting"))


@pytest.fixture(scope="module")
def used(counting: Counting) -> Iterator[RunningServer]:
    """Return a server that has made three pictures for team-a, and one for team-b."""
    with serve(counting.folder, *counting.options) as server:
        with counting.client(server, "team-a") as http:
            http.post("/generate", json=CAT | {"num_images": 2}).raise_for_status()
            http.post("/generate", json=CAT).raise_for_status()
            assert http.post("/generate", json=CAT | {"adapters": ["nobody"]}).status_code == 404
        with counting.client(server, "team-b") as http:
            http.post("/generate", json=CAT).raise_for_status()
        yield server


def test_a_key_sees_its_own_use_and_an_administrator_that_of_all(counting: Counting, used: RunningServer) -> None:
    with counting.client(used, "team-a") as http:
        own = http.get("/v1/usage").json()
        assert http.get("/v1/usage", params={"key": "team-a"}).json() == own
        assert http.get("/v1/usage", params={"key": "team-b"}).status_code == 403
        assert http.get("/v1/usage", params={"key": "nobody"}).status_code == 403
    (row,) = own["usage"]
    assert (row["key"], row["model"], row["day"]) == ("team-a", "embedded", datetime.now(UTC).date().isoformat())
    assert (row["requests"], row["pictures"], row["pixel_steps"]) == (3, 3, 3 * COST)
    assert 0 < row["device_seconds"] < 60
    with counting.client(used, "ops") as http:
        everything = http.get("/v1/usage").json()
        assert [(row["key"], row["pictures"]) for row in everything["usage"]] == [("team-a", 3), ("team-b", 1)]
        assert everything["total"]["pixel_steps"] == 4 * COST
        assert http.get("/v1/usage", params={"key": "team-b"}).json()["total"]["pictures"] == 1
        assert metric(http, "lithograph_key_pictures_total", key="team-a") == 3
        assert metric(http, "lithograph_key_pixel_steps_total", key="team-b") == COST
        assert metric(http, "lithograph_key_device_seconds_total", key="team-b") > 0


def test_days_select(counting: Counting, used: RunningServer) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    with counting.client(used, "ops") as http:
        assert http.get("/v1/usage", params={"since": tomorrow, "until": tomorrow}).json()["usage"] == []
        assert http.get("/v1/usage", params={"until": "0001-01-01", "since": "0001-01-01"}).json()["usage"] == []
        for wrong in ("yesterday", "2026-13-01", "", "\0"):
            refused = http.get("/v1/usage", params={"since": wrong})
            assert refused.status_code == 422
            (problem,) = refused.json()["error"]["problems"]
            assert (problem["code"], problem["field"]) == ("not_a_day", "since")


def test_the_client_and_the_command_show_usage(counting: Counting, used: RunningServer) -> None:
    with lithograph.Client(used.url, api_key=counting.secrets["team-b"]) as client:
        assert client.usage(since=datetime.now(UTC).date()).total.pictures == 1
    key = counting.folder / "key"
    key.write_text(counting.secrets["ops"])
    shown = run_lithograph("usage", "--server", used.url, "--api-key-file", str(key), cwd=counting.folder)
    assert shown.returncode == 0, shown.stderr
    heading, *rows = (line.split() for line in shown.stdout.splitlines())
    assert heading[:2] == ["DAY", "KEY"]
    assert [row[1:5] for row in rows[:2]] == [["team-a", "embedded", "3", "3"], ["team-b", "embedded", "1", "1"]]
    assert rows[2][:3] == ["total", "4", "4"]


def test_a_server_without_a_directory_keeps_no_usage(client: httpx.Client) -> None:
    refused = client.get("/v1/usage")
    assert refused.status_code == 404
    assert refused.json()["error"]["problems"][0]["code"] == "usage_not_kept"


def test_delivered_pictures_are_counted_once_while_processes_are_killed(tmp_path: Path) -> None:
    counting, delivered, kills = Counting(tmp_path), Counter[str](), 0
    at_once = 3

    def send(server: RunningServer, name: str, until: float) -> None:
        with counting.client(server, name) as http:
            while time.monotonic() < until:
                with suppress(httpx.TransportError):
                    if http.post("/generate", json=CAT).status_code == 200:
                        delivered[name] += 1

    for engine_alone in (True, False):
        with serve(tmp_path, *counting.options) as server, ThreadPoolExecutor() as pool:
            until = time.monotonic() + 12
            for name in ("team-a", "team-b", "team-b"):
                pool.submit(send, server, name, until)
            time.sleep(4)
            family = Family(server)
            if engine_alone:
                family.engine.kill()
            else:
                family.kill()
            kills += 1
    with serve(tmp_path, *counting.options) as server, counting.client(server, "ops") as http:
        rows: list[dict[str, Any]] = http.get("/v1/usage").json()["usage"]
    counted = {row["key"]: row["pictures"] for row in rows}
    assert set(counted) == {"team-a", "team-b"}
    for name, number in counted.items():
        assert delivered[name] <= number <= delivered[name] + kills * at_once, (name, delivered)
    assert sum(delivered.values()) > 10
