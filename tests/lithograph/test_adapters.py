"""``lithograph adapters`` on a directory and on S3: import, export, rollback, removal, and errors that lose no data."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from lithograph.__main__ import cli
from longcat.adapter import artifact as adapter
from longcat.adapter.artifact import fetch
from longcat.adapter.modules import lora_targets
from longcat.adapter.publishing import remove_adapter, remove_version
from longcat.adapter.verification import check_lora
from longcat.adapter.weights.file import load_lora
from longcat.errors import AdapterError, LithographError, UnknownAdapterError, UserError
from longcat.model.loading import Components
from longcat.problem import Problem
from longcat.storage.interface import Storage
from tests.conftest import run_lithograph
from tests.longcat.adapter.test_foreign import PREFIXED, layers_of

Command = Callable[..., Result]


def run(*arguments: str, answer: str = "", environment: dict[str, str] | None = None) -> Result:
    """Run the command in this process; our own errors are raised, as to ``main``."""
    result = CliRunner().invoke(
        cli, ["adapters", *arguments], input=answer, env=environment, auto_envvar_prefix="LITHOGRAPH"
    )
    if isinstance(result.exception, LithographError):
        raise result.exception
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


@pytest.fixture
def command(storage: Storage, request: pytest.FixtureRequest) -> Command:
    """Return a function that runs a subcommand on the storage; an unexpected failure fails the test."""
    options = ["--storage", storage.uri]
    if storage.uri.startswith("s3:"):
        options += ["--endpoint-url", request.getfixturevalue("s3_endpoint")]

    def on_storage(*arguments: str, answer: str = "") -> Result:
        return run(*arguments, *options, answer=answer)

    return on_storage


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    named = {f"lora_unet_{name.removeprefix('transformer.').replace('.', '_')}": at for name, at in PREFIXED.items()}
    alphas = {f"{name}.alpha": torch.tensor(2.0) for name in named}
    save_file(layers_of(named, down="lora_down", up="lora_up") | alphas, tmp_path / "kohya.safetensors")
    return tmp_path / "kohya.safetensors"


@pytest.fixture
def ink(command: Command, kohya: Path) -> None:
    """Publish versions 1 to 3; 3 is the latest."""
    for _ in range(3):
        assert command("import", str(kohya), "--name", "ink").exit_code == 0


def test_an_imported_adapter_is_published_whole_and_fits(
    command: Command, storage: Storage, model: Components, kohya: Path, tmp_path: Path
) -> None:
    done = command("import", str(kohya), "--name", "ink", "--trigger", "墨", "--trigger", "ink wash")
    assert done.output == "ink@1: kohya format, 2 modules, rank 4, alpha 2\n"
    manifest = adapter.read_manifest(storage, "ink", 1)
    assert (manifest.base.flavour, manifest.base.hash) == ("embedded", model.flavour.hash)
    assert (manifest.origin, manifest.trigger_words, manifest.training) == ("kohya", ("墨", "ink wash"), None)
    assert (manifest.rank, manifest.alpha, manifest.tensors) == (4, 2.0, 4)
    assert adapter.latest_version(storage, "ink") == 1
    weights = load_lora(fetch(storage, manifest, tmp_path / "cache"))
    check_lora(weights, lora_targets(model.transformer), max_rank=4)
    assert tuple(sorted(weights.layers)) == manifest.target_modules
    assert command("import", str(kohya), "--name", "ink", "--no-latest").exit_code == 0
    assert adapter.latest_version(storage, "ink") == 1
    assert json.loads(command("show", "ink").output) == json.loads(manifest.model_dump_json())
    assert json.loads(command("show", "ink@2").output)["version"] == 2


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
def test_an_adapter_goes_out_in_either_form_and_comes_back_the_same(
    command: Command, storage: Storage, tmp_path: Path
) -> None:
    for number, form in enumerate(("diffusers", "comfyui"), start=4):
        output = tmp_path / f"{form}.safetensors"
        assert command("export", "ink@2", "--format", form, "-o", str(output)).exit_code == 0
        assert output.stat().st_mode & 0o777 == 0o644
        assert any(key.endswith(".alpha") for key in load_file(output)) == (form == "comfyui")
        command("import", str(output), "--name", "ink")
        sent, back = (adapter.read_manifest(storage, "ink", version) for version in (2, number))
        assert (back.alpha, back.rank, back.origin) == (sent.alpha, sent.rank, form)
        was, is_now = (load_file(fetch(storage, manifest, tmp_path / "cache")) for manifest in (sent, back))
        assert was.keys() == is_now.keys()
        assert all(torch.equal(was[key], is_now[key]) for key in was)
        output.write_bytes(b"mine")
        with pytest.raises(UserError, match="exists already; give another file, or --force"):
            command("export", "ink", "-o", str(output))
        assert output.read_bytes() == b"mine"
        command("export", "ink", "-o", str(output), "--force")
        assert load_lora(output).rank == 4
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        command("export", "ink", "-o", str(tmp_path / "no" / "such.safetensors"))
    assert not list(tmp_path.glob(".export-*"))


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
def test_nobody_sees_half_an_adapter_while_it_is_removed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_import_as_json_gives_the_adapter_or_the_problems(tmp_path: Path, kohya: Path) -> None:
    store = ("--storage", (tmp_path / "store").as_uri(), "--json")
    done = run("import", str(kohya), "--name", "ink", *store)
    assert json.loads(done.stdout) == {
        "reference": "ink@1", "origin": "kohya", "modules": 2, "rank": 4, "alpha": 2.0, "has_alpha": True,
        "use_dora": False,
    }  # fmt: skip
    failed = run("import", str(kohya), "--name", "ink", "--max-rank", "2", *store)
    assert failed.exit_code == 1
    error = json.loads(failed.stdout)["error"]
    (problem,) = map(Problem.from_json, error["problems"])
    assert (error["code"], problem.code) == ("invalid_adapter", "adapter_rank_too_high")
    assert failed.stderr == f"error: {problem}\n"


def test_an_assumed_alpha_is_said(tmp_path: Path) -> None:
    save_file(layers_of(PREFIXED), tmp_path / "simpletuner.safetensors", metadata={"format": "pt"})
    store = ("--storage", (tmp_path / "store").as_uri())
    output = run("import", str(tmp_path / "simpletuner.safetensors"), "--name", "ink", *store).output
    assert output == ("ink@1: diffusers format, 2 modules, rank 4, alpha 4 (the rank, because the file has no alpha)\n")


def test_an_import_warns_of_what_it_cannot_know_and_of_no_effect(tmp_path: Path) -> None:
    zeros = {name: tensor * 0 for name, tensor in layers_of(PREFIXED).items()}
    save_file(zeros, tmp_path / "a.safetensors", metadata={"format": "pt", "ss_network_alpha": "Dynamic"})
    store = ("--storage", (tmp_path / "store").as_uri())
    done = run("import", str(tmp_path / "a.safetensors"), "--name", "ink", *store)
    assert done.stderr == (
        "warning: its header gives ss_network_alpha Dynamic, which is not an alpha; the rank was assumed; save it with the "
        "alpha that it was trained with\n"
        "warning: all its updates are zero: images with it are those of the base model; check that it was trained, and "
        "saved after the training\n"
    )
    assert "rank 4, alpha 4 (the rank" in done.stdout
    as_json = json.loads(run("import", str(tmp_path / "a.safetensors"), "--name", "ink", *store, "--json").stdout)
    codes = [Problem.from_json(warning).code for warning in as_json["warnings"]]
    assert codes == ["adapter_alpha_unusable", "adapter_changes_nothing"]


def test_an_export_never_overwrites_and_needs_no_hard_links(
    tmp_path: Path, kohya: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_links)
    store = ("--storage", (tmp_path / "store").as_uri())
    run("import", str(kohya), "--name", "ink", *store)
    output = tmp_path / "out.safetensors"
    assert run("export", "ink", "-o", str(output), *store).exit_code == 0
    assert load_lora(output).rank == 4
    with pytest.raises(LithographError, match="exists already"):
        run("export", "ink", "-o", str(output), *store)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


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
