"""``lithograph adapters`` on a directory and on S3: list, show, rollback, removal, and errors that lose no data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longcat.adapter import artifact as adapter
from longcat.adapter.publishing import remove_adapter, remove_version
from longcat.errors import AdapterError, LithographError, UnknownAdapterError
from longcat.model.loading import Components
from longcat.problem import Problem
from longcat.storage.interface import Storage
from tests.conftest import run_lithograph
from tests.lithograph.adapters.conftest import Command, run


@pytest.mark.usefixtures("ink")
def test_the_list_has_a_line_for_each_adapter(
    command: Command, storage: Storage, kohya: Path, model: Components
) -> None:
    command("import", str(kohya), "--name", "oil", "--no-latest")
    storage.create("torn/1/manifest.json", b"{}")
    storage.create("torn/latest", b"1\n")
    storage.create("half/1/adapter.safetensors", b"no manifest yet")
    shown = command("list")
    lines = [line.split() for line in shown.stdout.splitlines()]
    base = ["embedded", model.flavour.hash[:8]]
    assert lines[0] == ["NAME", "LATEST", "VERSIONS", "RANK", "MODULES", "BASE", "CREATED"]
    assert [line[:7] for line in lines[1:3]] == [
        ["ink", "3", "1,2,3", "4", "2", *base],
        ["oil", "-", "1", "4", "2", *base],
    ]
    assert lines[3] == ["torn", "1", "1", "-", "-", "-", "-"]
    assert "warning: adapter = torn@1: its manifest is invalid" in shown.stderr
    ink, oil, torn = json.loads(command("list", "--json").stdout)
    assert (ink["latest"], ink["versions"], ink["alpha"], ink["origin"]) == (3, [1, 2, 3], 2.0, "kohya")
    assert oil["latest"] is None
    assert "manifest is invalid" in torn["error"]


@pytest.mark.usefixtures("ink")
def test_a_name_is_rolled_back_and_forward(command: Command, storage: Storage) -> None:
    assert command("rollback", "ink").output == "ink means ink@2\n"
    assert command("rollback", "ink").output == "ink means ink@1\n"
    with pytest.raises(AdapterError, match="has no version before 1"):
        command("rollback", "ink")
    assert command("rollback", "ink", "--to", "3").output == "ink means ink@3\n"
    with pytest.raises(AdapterError, match=r"has no version 9 in .*; name one of its versions: 1, 2, 3"):
        command("rollback", "ink", "--to", "9")
    with pytest.raises(UnknownAdapterError, match="adapter = oil: has no version in"):
        command("rollback", "oil")
    assert adapter.latest_version(storage, "ink") == 3


@pytest.mark.usefixtures("ink")
def test_a_version_is_removed_unless_it_is_the_latest_and_its_number_stays_taken(
    command: Command, storage: Storage, kohya: Path
) -> None:
    with pytest.raises(AdapterError, match="ink@3: is the latest version of its name; roll back"):
        command("remove", "ink@3", "--yes")
    assert command("remove", "ink@2", answer="n\n").exit_code == 1
    assert set(adapter.list_versions(storage)) == {("ink", 1), ("ink", 2), ("ink", 3)}
    assert command("remove", "ink@2", answer="y\n").exit_code == 0
    command("rollback", "ink")  # past the removed version
    assert adapter.latest_version(storage, "ink") == 1
    assert command("remove", "ink@3", "--yes").output == "removed ink@3\n"
    assert {entry.key for entry in storage.list("ink/3")} == {"ink/3/removed"}
    with pytest.raises(AdapterError, match="ink@3: not in"):
        command("remove", "ink@3", "--yes")
    # A server may still hold the removed version 3: the next one must not reuse its number.
    assert command("import", str(kohya), "--name", "ink").output.startswith("ink@4: ")


@pytest.mark.usefixtures("ink")
def test_a_whole_adapter_is_removed_with_nothing_left_but_its_highest_number(
    command: Command, storage: Storage, kohya: Path
) -> None:
    command("import", str(kohya), "--name", "ink-2")
    assert "with all its versions" in command("remove", "ink", answer="y\n").output
    assert {entry.key for entry in storage.list("ink/")} == {"ink/3/removed"}
    assert set(adapter.list_versions(storage)) == {("ink-2", 1)}
    with pytest.raises(AdapterError, match="ink: has no version in"):
        command("show", "ink")
    with pytest.raises(AdapterError, match="ink: not in"):
        command("remove", "ink", "--yes")
    assert command("import", str(kohya), "--name", "ink").output.startswith("ink@4: ")


@pytest.mark.usefixtures("ink")
def test_readers_see_a_whole_adapter_or_none_while_it_is_removed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    delete = storage.delete

    def delete_and_look(key: str) -> None:
        delete(key)
        there = {entry.key for entry in storage.list()}
        whole = [version for _, version in adapter.list_versions(storage)]
        assert all(f"ink/{version}/adapter.safetensors" in there for version in whole)
        seen.append(("ink/latest" in there, len(whole)))

    monkeypatch.setattr(storage, "delete", delete_and_look)
    remove_version(storage, "ink", 1)
    assert seen == [(True, 2), (True, 2)]
    seen.clear()
    remove_adapter(storage, "ink")  # the name first: no reader finds a version that is being removed
    assert seen == [(False, 2), (False, 1), (False, 0), (False, 0), (False, 0), (False, 0)]


def test_mistakes_are_one_line(tmp_path: Path, kohya: Path) -> None:
    store = ("--storage", (tmp_path / "store").as_uri())
    cases: list[tuple[tuple[str, ...], str]] = [
        (
            ("import", str(kohya), "--name", "Ink", *store),
            "adapter = Ink: not the name of an adapter; use lower-case",
        ),
        (("import", str(kohya), "--name", "ink@2", *store), "give the name alone: ink"),
        (("import", str(kohya), "--name", "ink\n", *store), "not the name of an adapter"),
        (("import", str(kohya), "--name", "embedded", *store), "the name of a base model"),
        (("list", "--storage", "file:///a#b"), "write it as %23: file:///a%23b"),
        (("import", str(kohya), "--name", "ink", "--flavour", "nope", *store), "flavour = nope: not a known model"),
        (("import", str(kohya), "--name", "ink", "--max-rank", "2", *store), "rank 4 exceeds the limit, 2"),
        (("show", "ink@0", *store), "ink, or ink@3"),
        (("list", "--storage", "ftp://x"), "give file:///directory or s3://bucket/prefix"),
    ]
    for arguments, message in cases:
        with pytest.raises(LithographError, match=message):
            run(*arguments)
    assert not (tmp_path / "store").exists()
    finished = run_lithograph("adapters", "show", "ink", *store, cwd=tmp_path)
    assert finished.returncode == 1
    assert finished.stderr.splitlines() == [f"error: adapter = ink: has no version in {store[1]}; check the name"]


@pytest.mark.usefixtures("ink")
def test_what_lists_or_shows_prints_json_and_errors_as_json_too(command: Command) -> None:
    (listed,), shown = json.loads(command("list", "--json").stdout), json.loads(command("show", "ink", "--json").stdout)
    assert shown == json.loads(command("show", "ink").stdout)
    assert shown["version"] == listed["latest"] == 3
    assert [shown[key] for key in ("name", "rank", "base")] == [listed[key] for key in ("name", "rank", "base")]
    failures = [command("show", wrong, "--json") for wrong in ("oil", "ink@9", "../ink")]
    failures.append(run("list", "--json", "--storage", "ftp://host/adapters"))
    for failed in failures:
        (problem,) = json.loads(failed.stdout)["error"]["problems"]
        assert failed.exit_code == 1
        assert Problem.from_json(problem).remedy


def test_storage_can_be_given_in_the_environment(tmp_path: Path) -> None:
    assert "LITHOGRAPH_ADAPTERS_STORAGE" in run("list").stderr
    environment = {"LITHOGRAPH_ADAPTERS_STORAGE": tmp_path.as_uri()}
    assert json.loads(run("list", "--json", environment=environment).stdout) == []
    assert run("list", environment=environment).stderr == f"no adapters at {tmp_path.as_uri()}\n"


def test_looking_needs_no_torch(tmp_path: Path, kohya: Path) -> None:
    uri = (tmp_path / "store").as_uri()
    run("import", str(kohya), "--name", "ink", "--storage", uri)
    code = (
        "import sys\n"
        "from lithograph.__main__ import cli\n"
        "for line in (['list'], ['show', 'ink'], ['rollback', 'ink', '--to', '1'], ['remove', 'ink', '--yes']):\n"
        f"    cli(['adapters', *line, '--storage', {uri!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
