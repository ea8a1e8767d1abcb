"""Time from a loaded model to readiness, with many adapters on a slow S3 and one of them required.

The store is a stand-in (``loadtest.traffic.object_store``) that takes a round trip for every call. One adapter is published
with ``lithograph adapters import``; the others are copies of it under other names. Exit code 1 over the target.

With ``--adapters 0``: time from the command to readiness and to the first picture, and all processes' CPU time until then.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from loadtest.contestants.contestants import add_service_options, service_on, settings
from loadtest.servers import ServerProcess
from loadtest.traffic.adapters import make_adapter, publish
from loadtest.traffic.figures import Figures, machine, medians, report, table
from loadtest.traffic.object_store import ObjectStore, serving

REQUIRED = "style-0"
TARGET_SECONDS = 5.0
_LOADED = re.compile(r'"event": ?"required_adapters_loaded".*"seconds": ?([0-9.]+)')
_PATIENCE_SECONDS = 300.0
_CREDENTIALS = ("AWS_ACCESS_KEY_ID=nobody", "AWS_SECRET_ACCESS_KEY=nothing", "AWS_DEFAULT_REGION=us-east-1")


def make_storage(folder: Path, files: Path, count: int) -> None:
    """Publish one adapter, and copy it under the other names."""
    make_adapter(files / f"{REQUIRED}.safetensors", seed=0)
    publish({REQUIRED: files / f"{REQUIRED}.safetensors"}, storage=folder.as_uri())
    first = folder / REQUIRED
    manifest = json.loads((first / "1" / "manifest.json").read_bytes())
    for i in range(1, count):
        copy = folder / f"style-{i}"
        (copy / "1").mkdir(parents=True)
        (copy / "1" / "manifest.json").write_text(json.dumps(manifest | {"name": copy.name}))
        (copy / "1" / "adapter.safetensors").hardlink_to(first / "1" / "adapter.safetensors")
        (copy / "latest").write_text("1\n")


def measure(store: ObjectStore, arguments: argparse.Namespace, log: Path) -> Figures:
    """Start a server; return the seconds until its adapters were ready."""
    storage = f"s3://{store.bucket}"
    store.requests.clear()
    setup = service_on(storage, arguments, required=[REQUIRED], endpoint_url=store.url)
    server = ServerProcess(replace(setup, environment=_CREDENTIALS), log)
    try:
        server.wait_until_ready()
        ready_at, calls = time.monotonic(), store.requests.total()
        loaded = _LOADED.search(log.read_text())
        assert loaded is not None, log.read_text()
        while _count_ready(server.url) < arguments.adapters:
            assert time.monotonic() < ready_at + _PATIENCE_SECONDS
            time.sleep(0.1)
        return {
            "model to ready": float(loaded[1]),
            "calls until ready": float(calls),
            "ready to all listed": time.monotonic() - ready_at,
            "weights downloaded": float(store.requests["adapter.safetensors"]),
        }
    finally:
        server.stop()


def measure_first_picture(arguments: argparse.Namespace, log: Path) -> Figures:
    """Start a server without adapters, and request one picture."""
    begin = time.monotonic()
    server = ServerProcess(service_on(None, arguments), log)
    try:
        server.wait_until_ready()
        ready = time.monotonic() - begin
        picture = {"prompt": "a red apple", "seed": arguments.seed}
        httpx.post(
            f"{server.url}/generate", json=picture, trust_env=False, timeout=_PATIENCE_SECONDS
        ).raise_for_status()
        first = time.monotonic() - begin
        return {"command to ready": ready, "to first picture": first, "CPU time": server.cpu_seconds()}
    finally:
        server.stop()


def _count_ready(url: str) -> int:
    adapters = httpx.get(f"{url}/v1/adapters", trust_env=False, timeout=30).json()["adapters"]
    return sum(adapter["state"] == "ready" for adapter in adapters)


def _rounds(arguments: argparse.Namespace, folder: Path) -> list[Figures]:
    if not arguments.adapters:
        return [measure_first_picture(arguments, folder / f"{i}.log") for i in range(arguments.rounds)]
    (folder / "files").mkdir()
    make_storage(folder / "storage", folder / "files", arguments.adapters)
    store = ObjectStore(folder / "storage", round_trip_seconds=arguments.round_trip_ms / 1000)
    with serving(store):
        return [measure(store, arguments, folder / f"{i}.log") for i in range(arguments.rounds)]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_service_options(parser, adapters=1000)
    parser.add_argument("--round-trip-ms", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        rounds = _rounds(arguments, Path(scratch))
    content: dict[str, Any] = {"rounds": rounds, "summary": medians(rounds)}
    report(
        {"measured": "start", "settings": settings(arguments), "machine": about, **content},
        [table({**{f"round {i}": figures for i, figures in enumerate(rounds, 1)}, "median": medians(rounds)})],
    )
    sys.exit(max(figures.get("model to ready", 0.0) for figures in rounds) > TARGET_SECONDS)


if __name__ == "__main__":
    main()
