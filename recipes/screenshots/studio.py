"""A studio with a dataset, a training and pictures, in a process of its own."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import httpx

from longcat.process.port import free_port

ROOT = Path(__file__).parent.parent.parent
ADAPTER = "ink"
_START_SECONDS = 120
_TRAINING_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class Studio:
    """A running studio."""

    url: str
    home: Path

    def train(self, *, steps: int) -> str:
        """Queue a training of the ink style; return its page."""
        form = {
            "model_flavour": "embedded", "instance_data_dir": str(self.home / "datasets" / ADAPTER), "resolution": "128",
            "train_batch_size": "4", "max_train_steps": str(steps), "learning_rate": "2e-3", "lr_scheduler": "cosine",
            "lr_warmup_steps": "20", "lora_targets": "all-linear", "lora_rank": "16", "lora_dropout": "0",
            "validation_prompts": "a cat, ink style\n一个红苹果，版画\na car, ink style", "validation_base_prompts": "a cat",
            "validation_max_drift": "0.5", "validation_steps": str(steps // 4), "checkpointing_steps": str(steps // 4),
            "validation_num_inference_steps": "20", "seed": "42", "adapter_name": ADAPTER,
        }  # fmt: skip
        reply = httpx.post(f"{self.url}/train", data=form, headers={"HX-Request": "true"}, timeout=60)
        if reply.status_code != 204:
            raise click.ClickException(reply.text)
        return str(reply.headers["hx-redirect"])

    def wait_for_step(self, job: str, step: int) -> None:
        """Wait until a training has made that many steps."""
        deadline = time.monotonic() + _TRAINING_SECONDS
        while httpx.get(f"{self.url}{job}/metrics", timeout=60).json()["last_step"] < step:
            if time.monotonic() > deadline:
                raise click.ClickException(f"{self.url}{job} made no {step} steps")
            time.sleep(1)


@contextmanager
def running(home: Path) -> Iterator[Studio]:
    """Run a studio that has the demo's pictures as a dataset, one of them without a caption."""
    folder = home / "datasets" / ADAPTER
    shutil.copytree(ROOT / "examples" / "ink" / "pictures", folder)
    (folder / "005-panda.txt").unlink()
    port = free_port()
    command = [sys.executable, "-m", "lithograph", "server", "--flavour", "embedded", "--port", str(port)]
    with (home.parent / "studio.log").open("wb") as log:
        process = subprocess.Popen([*command, "--home", str(home)], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/healthz", process, home.parent / "studio.log")
        while "pill-ready" not in httpx.get(f"{url}/service", timeout=60).text:
            time.sleep(1)
        yield Studio(url=url, home=home)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
        if process.poll() is not None or time.monotonic() > deadline:
            raise click.ClickException(log.read_text(encoding="utf-8"))
