"""``lithograph adapters import`` and ``export``: files of other programs in and out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longcat.adapter import artifact as adapter
from longcat.adapter.artifact import fetch
from longcat.adapter.modules import lora_targets
from longcat.adapter.verification import check_lora
from longcat.adapter.weights.file import load_lora
from longcat.errors import LithographError, UserError
from longcat.model.loading import Components
from longcat.problem import Problem
from longcat.storage.interface import Storage
from tests.lithograph.adapters.conftest import Command, run
from tests.longcat.adapter.foreign.test_reading import PREFIXED, layers_of


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


def test_an_import_as_json_gives_the_adapter_or_the_problems(tmp_path: Path, kohya: Path) -> None:
    store = ("--storage", (tmp_path / "store").as_uri(), "--json")
    done = run("import", str(kohya), "--name", "ink", *store)
    assert json.loads(done.stdout) == {
        "reference": "ink@1", "origin": "kohya", "modules": 2, "rank": 4, "alpha": 2.0, "has_alpha": True,
        "use_dora": False, "trigger_words": [],
    }  # fmt: skip
    failed = run("import", str(kohya), "--name", "ink", "--max-rank", "2", *store)
    assert failed.exit_code == 1
    error = json.loads(failed.stdout)["error"]
    (problem,) = map(Problem.from_json, error["problems"])
    assert (error["code"], problem.code) == ("invalid_adapter", "adapter_rank_too_high")
    assert failed.stderr == f"error: {problem}\n"


def test_an_import_reports_an_assumed_alpha(tmp_path: Path) -> None:
    save_file(layers_of(PREFIXED), tmp_path / "simpletuner.safetensors", metadata={"format": "pt"})
    store = ("--storage", (tmp_path / "store").as_uri())
    output = run("import", str(tmp_path / "simpletuner.safetensors"), "--name", "ink", *store).output
    assert output == ("ink@1: diffusers format, 2 modules, rank 4, alpha 4 (the rank, because the file has no alpha)\n")


@pytest.mark.parametrize("format_", ["diffusers", "comfyui"])
def test_sampling_and_trigger_words_outlive_export_and_import(tmp_path: Path, kohya: Path, format_: str) -> None:
    usage = {"sampling": {"steps": 8, "guidance_scale": 1.0}, "trigger_words": ["水墨", "ink"]}
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    save_file(load_file(kohya), source, metadata={"lithograph": json.dumps(usage)})
    store = ("--storage", (tmp_path / "store").as_uri())
    done = run("import", str(source), "--name", "turbo", *store)
    assert done.stdout.endswith("\nmade for 8 steps with guidance 1\n")
    run("export", "turbo", "--format", format_, "-o", str(out), *store)
    again = json.loads(run("import", str(out), "--name", "again", *store, "--json").stdout)
    assert {field: again[field] for field in usage} == usage
    manifest = json.loads(run("show", "again", *store).stdout)
    assert {field: manifest[field] for field in usage} == usage
    replaced = json.loads(run("import", str(out), "--name", "third", "--trigger", "wash", *store, "--json").stdout)
    assert (replaced["trigger_words"], replaced["sampling"]) == (["wash"], usage["sampling"])


@pytest.mark.parametrize("usage", ["[]", "no JSON", '{"sampling": {"steps": 0, "guidance_scale": 1}}'])
def test_an_import_warns_of_a_sampling_that_it_cannot_read(tmp_path: Path, kohya: Path, usage: str) -> None:
    save_file(load_file(kohya), tmp_path / "a.safetensors", metadata={"lithograph": usage})
    store = ("--storage", (tmp_path / "store").as_uri(), "--json")
    done = json.loads(run("import", str(tmp_path / "a.safetensors"), "--name", "ink", *store).stdout)
    assert [Problem.from_json(warning).code for warning in done["warnings"]] == ["adapter_usage_unusable"]
    assert "sampling" not in done


def test_an_import_warns_of_an_unusable_alpha_and_of_no_effect(tmp_path: Path) -> None:
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
