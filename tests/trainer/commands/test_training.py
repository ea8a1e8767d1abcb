import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.conftest import run_lithograph
from tests.trainer.data.scans import picture
from trainer.commands.training import configure
from trainer.config.reading.file import load_config


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, caption in (("a", "a cat"), ("b", "一只猫"), ("c", None)):
        Image.new("RGB", (128, 128)).save(folder / f"{name}.png")
        if caption:
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def test_dataset_check_reports_what_is_usable_and_what_is_dropped(pictures: Path, tmp_path: Path) -> None:
    options = ["model_flavour=embedded", f"instance_data_dir={pictures}", "resolution=128", "output_dir=out"]
    done = run_lithograph("dataset", "check", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 Chinese, 1 English" in done.stdout
    report = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert [(drop["file"], drop["code"]) for drop in report["dropped"]] == [("c.png", "caption_file_missing")]
    with Image.open(tmp_path / "out" / "dataset.png") as sheet:
        sheet.verify()


def test_dataset_check_as_json_is_the_report(pictures: Path, tmp_path: Path) -> None:
    options = ["model_flavour=embedded", f"instance_data_dir={pictures}", "resolution=128", "output_dir=out"]
    done = run_lithograph("dataset", "check", "--json", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert Path(tmp_path, printed.pop("contact_sheet")).exists()
    assert printed == json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert (printed["languages"], printed["buckets"]) == ({"zh": 1, "en": 1, "other": 0}, {"128x128": 2})


def test_an_error_as_json_has_its_code(tmp_path: Path) -> None:
    done = run_lithograph("report", "nothing", "--json", cwd=tmp_path)
    assert done.returncode == 65
    (problem,) = json.loads(done.stdout)["error"]["problems"]
    assert problem["value"].endswith("run.json")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("init_lora=missing.safetensors", "init_lora = missing.safetensors"),
        ("validation_resolution=1024x1024", "validation_resolution = 1024x1024: 1024x1024 has more pixels than"),
        ("lora_rank=2147483647", "lora_rank = 2147483647: more than the width of any layer"),
    ],
)
def test_a_training_that_cannot_work_ends_before_anything_is_encoded(
    pictures: Path, tmp_path: Path, option: str, problem: str
) -> None:
    options = ["model_flavour=embedded", f"instance_data_dir={pictures}", "resolution=128", "output_dir=out", option]
    done = run_lithograph("train", *options, cwd=tmp_path)
    assert done.returncode == 78, done.stderr
    assert problem in done.stderr.splitlines()[-1]
    assert "caching" not in done.stderr


def test_a_scan_needs_no_torch(pictures: Path, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from longcat.model.flavour import describe
from trainer.config.options import TrainConfig
from trainer.data.report import contact_sheet
from trainer.data.scan import take_inventory
config = TrainConfig(
    model_flavour="embedded", resolution=128, instance_data_dir={str(pictures)!r}, output_dir={str(tmp_path / "out")!r}
)
inventory = take_inventory(config, lambda: describe(config.flavour))
contact_sheet(inventory, Path({str(tmp_path / "sheet.png")!r}))
assert len(inventory.samples) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_data_that_cannot_be_used_leaves_a_report_and_its_own_exit_code(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run_lithograph("dataset", "check", "model_flavour=embedded", "instance_data_dir=empty", cwd=tmp_path)
    assert done.returncode == 65
    assert "empty" in done.stderr
    assert (tmp_path / "output" / "dataset.json").exists()


def test_configure_writes_a_file_that_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "config" / "config.json"
    answers = [
        "embedded",
        "nf4-bnb",
        "",
        "pictures",
        "",
        "",
        "",
        "n",
        "0",
        "8",
        "",
        "20",
        "一只猫",
        "a cat",
        "out",
        "file:///adapters",
        "ink",
    ]
    done = CliRunner().invoke(configure, ["--output", str(path)], input="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    assert "base_model_precision = nf4-bnb" in done.stderr  # and the question was repeated
    assert "lora_rank = 0: too small; give at least 1" in done.stderr
    config, warnings = load_config(path, {})
    assert warnings == ()
    assert (config.model_flavour, config.lora_rank, config.max_train_steps) == ("embedded", 8, 20)
    assert (config.validation_prompts, config.adapter_name) == (("一只猫", "a cat"), "ink")


def test_configure_replaces_no_file_without_confirmation(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert CliRunner().invoke(configure, ["--output", str(path)], input="n\n").exit_code == 1
    assert path.read_text() == "{}"


def test_what_can_be_checked_without_the_model_is_checked_first(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    nothing = run_lithograph("train", "model_flavour=final", cwd=tmp_path, **offline)
    assert nothing.returncode == 65
    assert "there is no training data; give instance_data_dir or data_backend_config" in nothing.stderr
    missing = run_lithograph("train", "model_flavour=final", "instance_data_dir=none", cwd=tmp_path, **offline)
    assert missing.returncode == 65
    assert "instance_data_dir = none: does not exist" in missing.stderr
    picture(tmp_path / "data" / "a.png")
    no_hub = run_lithograph("train", "model_flavour=final", "instance_data_dir=data", cwd=tmp_path, **offline)
    assert no_hub.returncode == 69
    assert "set HF_ENDPOINT to a mirror" in no_hub.stderr
