"""The quickstart's commands, read from its page and run in a new copy of the repository."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests import ROOT
from tests.conftest import free_port
from tests.docs.pages import blocks, script
from trainer.config.reading.file import load_config
from trainer.config.reading.json_text import parse_json

ENGLISH = ROOT / "docs" / "quickstart.md"
CHINESE = ROOT / "docs" / "quickstart.zh.md"
TIMEOUT_SECONDS = 1500


@pytest.mark.parametrize("language", ["bash", "jsonc"])
def test_both_languages_show_the_same_commands(language: str) -> None:
    english, chinese = (blocks(page, language) for page in (ENGLISH, CHINESE))
    assert [block.code for block in chinese] == [block.code for block in english]
    assert english


def test_few_commands_are_not_run_and_each_has_a_reason() -> None:
    assert len([block for block in blocks(ENGLISH, "bash") if block.not_run]) <= 2


def test_the_configuration_shown_is_valid(tmp_path: Path) -> None:
    for number, block in enumerate(blocks(ENGLISH, "jsonc")):
        file = tmp_path / f"{number}.json"
        file.write_text(block.text, encoding="utf-8")
        config, warnings = load_config(file, {})
        assert not warnings
        assert config.model_flavour == parse_json(block.text)["model_flavour"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the repository's files as in a clone, with a .venv that uses the installed packages."""
    folder = tmp_path / "lithograph"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
    (packages,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    installed = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "installed.pth").write_text("\n".join(installed), encoding="utf-8")
    return folder


def test_every_command_of_the_quickstart(copy: Path, tmp_path: Path) -> None:
    ports = {":8000": free_port(), ":8001": free_port()}
    environment = os.environ | {
        "LITHOGRAPH_SERVE_PORT": str(ports[":8000"]),
        "LITHOGRAPH_SERVER_PORT": str(ports[":8001"]),
        "LITHOGRAPH_SERVER_HOME": str(tmp_path / "studio"),
        "LITHOGRAPH_TRAIN_OUTPUT_DIR": str(tmp_path / "output"),
    }
    file = tmp_path / "quickstart.sh"
    file.write_text(script(blocks(ENGLISH, "bash"), ports), encoding="utf-8")
    log = tmp_path / "log"
    with log.open("wb") as stream:
        shell = subprocess.Popen(
            ["bash", file], cwd=copy, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            code = shell.wait(TIMEOUT_SECONDS)
        finally:
            stop_group(shell.pid)
    assert code == 0, log.read_text(encoding="utf-8")[-8000:]
    with Image.open(copy / "cat.png") as picture:
        assert picture.size == (128, 128)
    assert (copy / "adapters" / "my-style" / "1" / "manifest.json").exists()


def stop_group(group: int) -> None:
    """Stop the shell and its background processes."""

    def members() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    for number, seconds in ((signal.SIGTERM, 60), (signal.SIGKILL, 10)):
        if not members():
            return
        os.killpg(group, number)
        deadline = time.monotonic() + seconds
        while members() and time.monotonic() < deadline:
            time.sleep(0.2)
