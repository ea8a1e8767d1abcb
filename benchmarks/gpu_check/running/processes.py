"""Starts the process of a group, bounds its time, and reads its records. No torch."""

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_check.checks import Record, Status
from benchmarks.gpu_check.running.groups import Group
from benchmarks.gpu_check.settings import Settings

ROOT = Path(__file__).parent.parent.parent.parent
_STOP_SECONDS = 15.0
_SHOWN_CHARACTERS = 300


def run_group(group: Group, settings: Settings, *, seconds: float) -> list[Record]:
    """Run a group's checks in a process of at most ``seconds``; return their records.

    A check under way when the process ends has failed, and so has a group whose process ended without success.
    """
    file = settings.folder / f"{group.name.replace(' ', '-')}.jsonl"
    log = file.with_suffix(".log")
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check.running.group", group.name]
    command += ["--part", str(group.part), "--module", group.module, "--argument", group.argument]
    command += ["--settings", settings.to_json(), "--records", str(file)]
    begin = time.time()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(settings), stdout=None, stderr=stream, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            end = f"its process ended with exit code {code}: {_last_line(log)}" if code else ""
        except subprocess.TimeoutExpired:
            end = f"it was ended after {seconds:.0f} s"
        finally:
            _end(process)
    records, began, since = _read(file)
    if end:
        name, taken = began or "its process", time.time() - (since or begin)
        records.append(
            Record(
                part=group.part, group=group.name, name=name, status=Status.FAILED, reason=end, seconds=round(taken, 2)
            )
        )
        print(records[-1].line, flush=True)
    return records


def _environment(settings: Settings) -> dict[str, str]:
    """Return the environment of a group: these sources, whether installed or not, and no request to a hub."""
    paths = [str(ROOT)]
    try:
        version("lithograph")
    except PackageNotFoundError:
        paths.append(str(_metadata(settings.folder)))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    added = {"PYTHONPATH": os.pathsep.join(paths), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    if settings.model is None:
        added["HF_HUB_OFFLINE"] = "1"
    return os.environ | added


def _metadata(folder: Path) -> Path:
    """Write what ``importlib.metadata`` needs for the version of sources that are not installed; return its directory."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    path = folder / "metadata" / f"{project['name']}-{project['version']}.dist-info"
    path.mkdir(parents=True, exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (path / "METADATA").write_text(text, encoding="utf-8")
    return path.parent


def _read(file: Path) -> tuple[list[Record], str, float]:
    """Return the records, and the name and the beginning of a check that did not end."""
    records, began, since = [], "", 0.0
    for entry in _entries(file):
        if "began" in entry:
            began, since = entry["began"], entry["at"]
        else:
            records.append(Record(**entry | {"status": Status(entry["status"])}))
            began, since = "", 0.0
    return records, began, since


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    if file.exists():
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process whose time is over, and the servers and trainings that it started."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    process.kill()
    for each in started:
        with suppress(psutil.NoSuchProcess):  # psutil makes sure that the id has not become another process's
            each.kill()
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:_SHOWN_CHARACTERS] if lines else "nothing in its log"
