"""``lithograph fetch``, from a hub over HTTP."""

import os
import subprocess
import sys
from pathlib import Path

from longcat.model.flavour import EMBEDDED_FOLDER, Flavour
from tests.hub import COMMIT, hub
from trainer.record.outcome import Outcome


def fetch(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lithograph", "fetch", *options],
        env=os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_weights_are_fetched_once_and_found_from_then_on(tmp_path: Path, flavour: Flavour) -> None:
    with hub() as (url, downloads):
        first = fetch(HF_HOME=str(tmp_path), HF_ENDPOINT=url)
        assert first.returncode == 0, first.stderr
        assert first.stdout.startswith("final: ")
        assert first.stdout.rstrip().endswith(f"hash {flavour.hash}")
        assert COMMIT in first.stdout
        ours = [path.relative_to(EMBEDDED_FOLDER) for path in EMBEDDED_FOLDER.rglob("*.safetensors")]
        weights = sum(path.parts[0] != "adapters" for path in ours)
        assert sum(name.endswith(".safetensors") for name in downloads) == weights
        assert not any(name.endswith((".png", "README.md")) for name in downloads)
        downloads.clear()
        assert fetch(HF_HOME=str(tmp_path), HF_ENDPOINT=url).stdout == first.stdout
        assert downloads == []
        next(tmp_path.rglob("vae/*.safetensors")).unlink()
        assert fetch(HF_HOME=str(tmp_path), HF_ENDPOINT=url).stdout == first.stdout
    # The hub is unreachable now: a service with a read-only volume finds the downloaded files.
    assert fetch(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1").stdout == first.stdout
    assert fetch(HF_HOME=str(tmp_path), HF_ENDPOINT=url).stdout == first.stdout


def test_an_incomplete_download_is_no_model(tmp_path: Path) -> None:
    with hub() as (url, _):
        assert fetch(HF_HOME=str(tmp_path), HF_ENDPOINT=url).returncode == 0
    next(tmp_path.rglob("vae/*.safetensors")).unlink()
    result = fetch(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    assert result.stderr.startswith("error: flavour = final: meituan-longcat/LongCat-Image cannot be downloaded")


def test_a_token_is_used_and_a_missing_one_is_named(tmp_path: Path) -> None:
    with hub(token="hf_secret") as (url, _):
        denied = fetch(HF_HOME=str(tmp_path / "a"), HF_ENDPOINT=url, HF_TOKEN="")
        assert denied.returncode != 0
        assert f"tried in this order: a directory final, {url}, the cache {tmp_path / 'a' / 'hub'}" in denied.stderr
        assert "HF_TOKEN for a repository that needs one" in denied.stderr
        given = fetch(HF_HOME=str(tmp_path / "b"), HF_ENDPOINT=url, HF_TOKEN="hf_secret")
        assert given.returncode == 0, given.stderr
        wrong = fetch(HF_HOME=str(tmp_path / "c"), HF_ENDPOINT=url, HF_TOKEN="hf_other")
        assert f"{url} (HF_TOKEN)" in wrong.stderr
        assert "hf_other" not in wrong.stderr


def test_a_directory_is_checked_where_it_is(flavour: Flavour, tmp_path: Path) -> None:
    result = fetch("--flavour", str(EMBEDDED_FOLDER))
    assert result.stdout.rstrip().endswith(f"in {EMBEDDED_FOLDER}, hash {flavour.hash}")
    assert "lacks model_index.json" in fetch("--flavour", str(tmp_path)).stderr


def test_it_fetches_the_files_that_a_service_or_a_training_needs(flavour: Flavour, tmp_path: Path) -> None:
    served = fetch(LITHOGRAPH_SERVE_FLAVOUR="embedded")
    assert served.stdout.startswith("embedded: ")
    config = tmp_path / "config.json"
    config.write_text(f'{{"pretrained_model_name_or_path": "{EMBEDDED_FOLDER}"}} // a directory')
    trained = fetch("--config", str(config), LITHOGRAPH_TRAIN_SEED="7")
    assert trained.stdout.rstrip().endswith(f"in {EMBEDDED_FOLDER}, hash {flavour.hash}")
    wrong = fetch("--config", str(tmp_path / "nowhere.json"))
    assert (wrong.returncode, "nowhere.json" in wrong.stderr) == (Outcome.BAD_CONFIG, True)
