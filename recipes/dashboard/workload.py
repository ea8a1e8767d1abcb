"""The workload on the dashboard: a service with adapters under mixed load, and a training that publishes to it."""

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from longcat.adapter.foreign.reading import flavour_targets, read_foreign
from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.model.flavour import Flavour
from longcat.storage.interface import Storage
from recipes.dashboard.prometheus import wait_for

SLOTS = 4
STYLES = ("ink", "wash", "chalk", "stamp", "lino", "etching")
"""Number of adapters, more than slots, so that some are evicted."""
_WORDS = ("a cat", "一只猫", "a red apple", "一条鱼", "a house by the sea", "伞", "a car", "一朵花")
_SIZES = ((128, 128), (128, 128), (128, 128), (192, 128), (192, 192))
_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running server."""

    url: str
    log: Path


@contextmanager
def serving(folder: Path, port: int, storage: Storage) -> Iterator[Service]:
    """Start a service with fewer slots than adapters, a short queue, and jobs that last."""
    log = folder / "serve.log"
    options = [
        "--adapters",
        storage.uri,
        "--adapter-slots",
        str(SLOTS),
        "--adapter-rank",
        str(_RANK),
        "--max-queue",
        "5",
        "--jobs-storage",
        (folder / "jobs").as_uri(),
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "lithograph", "serve", "--port", str(port), *options], stdout=stream, stderr=stream
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/readyz", process, log)
        yield Service(url=url, log=log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def training(folder: Path, port: int, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a training with metrics on that port."""
    with (folder / "train.log").open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "lithograph", "train", f"metrics_port={port}", *options],
            stdout=stream,
            stderr=stream,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


def publish_styles(storage: Storage, file: Path, flavour: Flavour) -> None:
    """Publish one trained adapter under all names, with increasing strength."""
    trained = read_foreign(file, flavour_targets(flavour), max_rank=_RANK).weights
    for place, name in enumerate(STYLES):
        weights = replace(trained, alpha=trained.alpha * (1 + place / 100))
        manifest = publish_lora(storage, name, draft_of(weights, flavour, origin="trained"), weights)
        set_latest(storage, name, manifest.version)


def publish_torn(storage: Storage) -> None:
    """Publish a name whose version does not exist, which the service rejects."""
    storage.create("torn/latest", b"1\n")


class StyleLoad:
    """Run concurrent users, each with one request after the other, until stopped."""

    def __init__(self, url: str, *, people: int, styles: Sequence[str]) -> None:
        self._url = url
        self._styles = styles
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(people)]

    def __enter__(self) -> "StyleLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=300) as client:
            while not self._stopped.is_set():
                self._ask_once(client, chance)

    def _ask_once(self, client: httpx.Client, chance: random.Random) -> None:
        width, height = chance.choice(_SIZES)
        body: dict[str, Any] = {
            "prompt": f"{chance.choice(_WORDS)}, {chance.randrange(6)}", "width": width, "height": height,
            "steps": chance.choice((4, 6, 8, 12)), "num_images": chance.choice((1, 1, 1, 2)),
            "adapters": [{"name": name} for name in chance.sample(self._styles, min(1, len(self._styles)))],
        }  # fmt: skip
        mishap = chance.random()
        if mishap < 0.05:
            client.post("/generate", json=body | {"steps": 0})
        elif mishap < 0.1:
            client.post("/generate", json=body | {"steps": 60, "timeout_seconds": 0.2})
        elif mishap < 0.15:
            client.post("/generate", json=body | {"async": True})
        elif mishap < 0.2:
            try:
                client.post("/generate", json=body | {"steps": 60}, timeout=0.3)
            except httpx.TimeoutException:
                return  # disconnect, as some users do
        else:
            reply = client.post("/generate", json=body)
            if reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
                self._stopped.wait(2)
