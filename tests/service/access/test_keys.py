"""The file of API keys, and the command that edits it."""

import asyncio
import json
import logging
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lithograph.__main__ import cli
from longcat.errors import ConfigError, LithographError
from service.access import key_file
from service.access.allowance import Allowance
from service.access.caller import ANYONE, Caller, ForbiddenError, Role
from service.access.key_file import KeyFile
from service.access.keys import KEY_PREFIX, ApiKeys, hash_of
from service.access.settings import AccessConfig

HASH = hash_of("anything")


def keys(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["keys", *map(str, arguments)])


def added(path: Path, name: str, *options: str) -> str:
    result = keys("add", name, "--file", path, *options)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_key_is_shown_once_and_the_file_has_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "keys.json"
    secret = added(path, "team-a", "--adapters", "team-a-*", "--role", "generate", "--role", "adapters")
    assert re.fullmatch(KEY_PREFIX + r"[A-Za-z0-9_-]{43}", secret)
    assert secret not in path.read_text() + keys("list", "--file", path).stdout
    caller = ApiKeys.read(path).caller_of(secret)
    roles, allowance = frozenset({Role.GENERATE, Role.ADAPTERS}), Allowance(priority="normal")
    assert caller == Caller(name="team-a", roles=roles, adapters=("team-a-*",), allowance=allowance)
    assert ApiKeys.read(path).caller_of(secret[:-1]) is None
    listed = json.loads(keys("list", "--file", path, "--json").stdout)
    assert [(key["name"], key["roles"]) for key in listed] == [("team-a", ["generate", "adapters"])]
    assert hash_of(secret) not in keys("list", "--file", path, "--json").stdout
    assert keys("remove", "team-a", "--file", path).exit_code == 0
    assert ApiKeys.read(path).caller_of(secret) is None


def test_a_key_has_a_share_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    options = (
        "--share",
        "2.5",
        "--highest-priority",
        "high",
        "--max-requests",
        "3",
        "--pixel-steps-per-minute",
        "9000",
    )
    secret = added(path, "team-a", *options)
    caller = ApiKeys.read(path).caller_of(secret)
    assert caller is not None
    assert caller.allowance == Allowance(share=2.5, priority="high", requests=3, pixel_steps_per_minute=9000)
    assert keys("list", "--file", path).stdout.splitlines()[1].split()[3:7] == ["2.5", "high", "3", "9000"]


def test_keys_that_are_made_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    from lithograph.access.keys import _edit
    from service.access.keys import make_key

    made = [make_key(f"key-{i}", roles=["generate"], adapters=None) for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: _edit(path, lambda known: known.with_key(each[1])), made))
    assert sorted(ApiKeys.read(path).names) == sorted(f"key-{i}" for i in range(20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("add", "team-a"), "there is a key of that name"),
        (("remove", "team-b"), "no key of that name"),
        (("add", "Team B"), "not the name of a key"),
        (("add", "b\n"), "not the name of a key"),
        (("add", "b", "--adapters", "b/*"), "not a pattern of adapter names"),
        (("add", "b", "--adapters", ""), "not a pattern of adapter names"),
        (("add", "b", "--role", "king"), "is not one of"),
        (("add", "b", "--share", "0"), "share"),
        (("add", "b", "--share", "nan"), "share"),
        (("add", "b", "--max-requests", "0"), "requests"),
        (("add", "b", "--pixel-steps-per-minute", "-1"), "pixel_steps_per_minute"),
        (("add", "b", "--highest-priority", "urgent"), "is not one of"),
    ],
)
def test_a_wrong_command_changes_nothing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    path = tmp_path / "keys.json"
    added(path, "team-a")
    before = path.read_bytes()
    result = keys(*arguments, "--file", path)
    assert result.exit_code != 0
    assert message in (result.output if result.exception is None else f"{result.output}{result.exception}")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"keys": 3}', "not a list"),
        (b'{"kyes": []}', "kyes"),
        (json.dumps({"keys": [{"name": "a", "sha256": "hunter2"}]}).encode(), "sha256"),
        (json.dumps({"keys": [{"name": "a", "sha256": HASH + "\n"}]}).encode(), "sha256"),
        (json.dumps({"keys": [{"name": "a", "sha256": HASH, "roles": []}]}).encode(), "roles"),
        (json.dumps({"keys": [{"name": "a", "sha256": HASH, "roles": ["root"]}]}).encode(), "roles"),
        (json.dumps({"keys": [{"name": "a", "sha256": HASH}] * 2}).encode(), "two keys"),
        (json.dumps({"keys": [{"name": "a", "sha256": HASH, "adapters": ["[a-z]*"]}]}).encode(), "pattern"),
    ],
)
def test_a_wrong_file_is_named_with_the_place_and_no_hash(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        ApiKeys.read(path)
    text = str(caught.value)
    assert message in text
    assert str(path) in text
    assert not {word for word in ("hunter2", HASH) if word in text}


def test_an_administrator_has_every_role_and_a_pattern_bounds_what_a_key_sees() -> None:
    admin = Caller(name="ops", roles=frozenset({Role.ADMIN}))
    team = Caller(name="team-a", roles=frozenset({Role.GENERATE}), adapters=("team-a-*", "shared"))
    assert all(admin.has(role) and ANYONE.has(role) for role in Role)
    assert [team.sees(name) for name in ("team-a-ink", "team-a-ink@3", "shared", "team-b-ink", "shared2", "team-a")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    with pytest.raises(ForbiddenError, match="does not have the role adapters"):
        team.check(Role.ADAPTERS)
    with pytest.raises(ForbiddenError, match=r"adapters.0.name = team-b-ink@1: .*team-a-\*, shared"):
        team.check_adapter("team-b-ink@1", field="adapters.0.name")
    with pytest.raises(LithographError, match="not the name of an adapter"):
        team.check_adapter("team-b/../x", field="name")
    none = Caller(name="none", roles=frozenset({Role.GENERATE}), adapters=())
    assert not none.sees("ink")


def test_metrics_can_only_need_a_key_where_there_are_keys() -> None:
    with pytest.raises(ConfigError, match="no API keys that a request for metrics could carry; give --api-keys-file"):
        AccessConfig(metrics_key="required")
    assert AccessConfig(metrics_key="none").api_keys_file is None


def test_a_running_server_follows_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(key_file, "_CHECK_SECONDS", 0.0)
    path = tmp_path / "keys.json"
    first = added(path, "first")
    file = KeyFile(path)

    def name_of(secret: str) -> str | None:
        caller = asyncio.run(file.caller_of(secret))
        return None if caller is None else caller.name

    assert name_of(first) == "first"
    second = added(path, "second")
    assert (name_of(second), name_of(first)) == ("second", "first")
    keys("remove", "first", "--file", path)
    assert (name_of(second), name_of(first)) == ("second", None)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="lithograph"):
        path.write_text("{")
        assert name_of(second) == "second"
        path.unlink()
        assert name_of(second) == "second"
        third = added(tmp_path / "next.json", "third")
        os.replace(tmp_path / "next.json", path)
        assert (name_of(second), name_of(third)) == (None, "third")
    events = [str(getattr(record, "event", "")) for record in caplog.records]
    assert [event for event in events if "api_keys" in event] == [
        "api_keys_not_read",
        "api_keys_not_read",
        "api_keys_read",
    ]
    assert not {secret for secret in (third, hash_of(third)) if secret in caplog.text}


def test_a_file_that_could_not_be_read_for_a_moment_is_read_without_another_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "_CHECK_SECONDS", 0.0)
    path = tmp_path / "keys.json"
    leaver = added(path, "leaver")
    file = KeyFile(path)
    keys("remove", "leaver", "--file", path)
    changed, hidden = path.stat(), tmp_path / "hidden"
    path.rename(hidden)
    path.mkdir()  # as little a file as one that a network file system does not give
    assert asyncio.run(file.caller_of(leaver)) is not None
    path.rmdir()
    hidden.rename(path)
    assert path.stat().st_ino == changed.st_ino
    assert asyncio.run(file.caller_of(leaver)) is None


def test_a_kubernetes_secret_is_replaced_by_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "_CHECK_SECONDS", 0.0)
    secrets = {}
    for name in ("old", "new"):
        secrets[name] = added(tmp_path / name / "keys.json", name)
    (tmp_path / "..data").symlink_to(tmp_path / "old")
    (tmp_path / "keys.json").symlink_to(tmp_path / "..data" / "keys.json")
    file = KeyFile(tmp_path / "keys.json")
    assert asyncio.run(file.caller_of(secrets["old"])) is not None
    (tmp_path / "..next").symlink_to(tmp_path / "new")
    os.replace(tmp_path / "..next", tmp_path / "..data")
    assert asyncio.run(file.caller_of(secrets["old"])) is None
    assert asyncio.run(file.caller_of(secrets["new"])) is not None


def test_a_pipe_in_place_of_the_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader of a pipe waits for its writer for ever, and removed keys went on working."""
    monkeypatch.setattr(key_file, "_CHECK_SECONDS", 0.0)
    path = tmp_path / "keys.json"
    leaver, content = added(path, "leaver"), added(tmp_path / "next.json", "next")
    file = KeyFile(path)
    for put in (os.mkfifo, lambda place: place.symlink_to("/dev/zero")):
        path.unlink()
        put(path)
        assert asyncio.run(file.caller_of(leaver)) is not None
        assert "is no file of API keys: it is not a regular file" in caplog.text
        with pytest.raises(ConfigError, match="it is not a regular file"):
            KeyFile(path)
    (tmp_path / "next.json").replace(path)
    assert asyncio.run(file.caller_of(leaver)) is None
    assert asyncio.run(file.caller_of(content)) is not None


def test_a_file_system_that_hangs_delays_a_request_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    secret = added(path, "first")
    file = KeyFile(path)
    monkeypatch.setattr(key_file, "_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(key_file, "_READ_SECONDS", 0.05)
    file._next_check = 0.0
    hangs = [True]

    def stamp(_: Path) -> tuple[int, int, int]:
        while hangs[0]:
            time.sleep(0.01)
        return (1, 2, 3)

    monkeypatch.setattr(key_file, "_stamp_of", stamp)

    async def main() -> None:
        assert await file.caller_of(secret) is not None
        assert await file.caller_of("another") is None

    asyncio.run(main())  # returns although the file has not: its thread does not hold a shutdown
    assert "api_keys_not_read" in [getattr(record, "event", "") for record in caplog.records]
    assert "has not been read within" in caplog.text
    hangs[0] = False
