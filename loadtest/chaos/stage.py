"""The parameters that all scenarios share: load, storage, adapters, and the duration of a fault."""

import io
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from loadtest.chaos.load import Body, Load
from loadtest.chaos.outcome import ScenarioOutcome
from loadtest.chaos.server import ChaosServer
from loadtest.servers import ROOT
from loadtest.traffic.adapters import RANK, import_command, make_adapter, make_adapters, publish

_POLL_SECONDS = 1
ADAPTERS = 3
"""Adapters that are published before the first fault; the load uses two of them."""


@dataclass(kw_only=True)
class Stage:
    """The shared environment of all scenarios."""

    folder: Path
    load: Load
    kills: int
    """Times that each process is killed."""
    roles: Sequence[str]
    """The processes that are killed."""
    hold_seconds: float
    """Duration of a fault that ends by itself: storage that is gone, a stopped process."""
    deadline_seconds: float
    connections: int
    """Half-open connections to try."""
    soak_seconds: float
    jobs: int
    """Jobs that are submitted to several servers."""
    published: list[str] = field(default_factory=list)
    """References of all versions whose publication succeeded; all have the same weights."""

    @property
    def storage(self) -> Path:
        """The directory of the file storage."""
        return self.folder / "storage"

    def options(self, storage: str | None = None) -> list[str]:
        """Return the options of a server."""
        return [
            *("--adapters", self.storage.as_uri() if storage is None else storage, "--adapter-rank", str(RANK)),
            *("--adapter-poll-seconds", str(_POLL_SECONDS), "--grace-seconds", str(int(self.deadline_seconds))),
        ]

    def prepare(self) -> None:
        """Publish the adapters of the load."""
        publish(make_adapters(self.folder / "files", ADAPTERS), storage=self.storage.as_uri())
        make_adapter(self.folder / "files" / "kept.safetensors", seed=99)

    def publish_one(self) -> None:
        """Publish one more version of an adapter, none of which may be lost."""
        command = import_command(self.folder / "files" / "kept.safetensors", "kept", storage=self.storage.as_uri())
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            self.published.append(f"kept@{len(self.published) + 1}")

    def check_published(self, server: ChaosServer, outcome: ScenarioOutcome) -> None:
        """Generate with every version that was published: each must give the same pixels."""
        pictures = set()
        with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as http:
            for reference in self.published:
                body = {"prompt": "a cat", "seed": 1, "steps": 2, "adapters": [{"name": reference}]}
                reply = http.post("/generate", json=body)
                if reply.status_code != 200:
                    outcome.faults.append(f"published and lost: {reference}: {reply.status_code} {reply.text[:300]}")
                    continue
                with Image.open(io.BytesIO(reply.content)) as image:
                    pictures.add(np.asarray(image).tobytes())
        if len(pictures) > 1:
            outcome.faults.append("versions with the same weights gave different pictures")
        outcome.notes["published"] = len(self.published)

    def finish(self, outcome: ScenarioOutcome, server: ChaosServer) -> ScenarioOutcome:
        """Store the counts in the outcome."""
        outcome.counts = self.load.counts
        outcome.faults += self.load.faults
        outcome.faults += [f"outlived its main process: {process}" for process in server.orphans]
        server.orphans.clear()
        self.load.reset()
        return outcome


def bodies() -> list[Body]:
    """Return the requests of the load: plain ones, and with adapters by name and by version."""
    plain: list[Body] = [
        {"prompt": "a red apple", "seed": 1, "steps": 3},
        {"prompt": "一只猫，蓝色背景", "seed": 2, "steps": 4, "guidance_scale": 1},
        {"prompt": "a house", "seed": 3, "steps": 3, "width": 192, "height": 128},
    ]
    styles = ("style-0", "style-1", "style-0@1")
    styled = ({"prompt": "a fish", "seed": 4, "steps": 3, "adapters": [{"name": style}]} for style in styles)
    return [*plain, *styled]
