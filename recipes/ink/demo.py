"""``make demo``: train an ink style on the embedded model while it is served, with pictures before and after.

The server is never restarted: it finds the published adapter by itself. The prompts name things outside the training
data.
"""

import contextlib
import io
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "examples" / "ink" / "config.json"
PROMPTS = (
    "a cat, ink style", "一个红苹果，版画", "a car, ink style", "鱼，版画", "a house, ink style", "一个雨伞，版画",
)  # fmt: skip
_START_SECONDS = 120
_SIDE_PX = 128


@click.command()
@click.option("--seed", default=42, show_default=True, help="Steps of the training.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True)
def main(seed: int, folder: Path) -> None:
    """Serve, train, and generate the same prompts before and after; write before-and-after.png."""
    run = folder.absolute() / f"seed-{seed}-{time.strftime('%H%M%S')}"
    run.mkdir(parents=True)
    adapters = (run / "adapters").as_uri()
    begin = time.monotonic()
    with served(run, adapters) as url:
        before = [draw(url, prompt, []) for prompt in PROMPTS]
        options = [
            f"seed={seed}",
            f"output_dir={run / 'training'}",
            f"cache_dir={run / 'cache'}",
            f"publish_to={adapters}",
        ]
        subprocess.run(
            [sys.executable, "-m", "lithograph", "train", "--config", CONFIG, *options], cwd=ROOT, check=True
        )
        trained = time.monotonic()
        wait_for_adapter(url)
        print(f"served {time.monotonic() - trained:.1f} s after the training ended")
        after = [draw(url, prompt, [{"name": "ink"}]) for prompt in PROMPTS]
    sheet = Image.new("RGB", (_SIDE_PX * len(PROMPTS), 2 * _SIDE_PX))
    for column, pair in enumerate(zip(before, after, strict=True)):
        for row, picture in enumerate(pair):
            sheet.paste(picture, (column * _SIDE_PX, row * _SIDE_PX))
    sheet.save(run / "before-and-after.png")
    print(f"{run / 'before-and-after.png'}: before above, after below; {time.monotonic() - begin:.0f} s in all")


@contextlib.contextmanager
def served(folder: Path, adapters: str) -> Iterator[str]:
    """Start a server on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "serve.log").open("wb") as log:
        command = [sys.executable, "-m", "lithograph", "serve", "--port", str(port), "--adapters", adapters]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.2)
        else:
            raise SystemExit(f"the server did not start: see {folder / 'serve.log'}")
        yield url
    finally:
        server.terminate()
        server.wait()


def draw(url: str, prompt: str, adapters: list[dict[str, object]]) -> Image.Image:
    """Request one picture."""
    reply = httpx.post(f"{url}/generate", json={"prompt": prompt, "seed": 1, "adapters": adapters}, timeout=60)
    reply.raise_for_status()
    return Image.open(io.BytesIO(reply.content)).convert("RGB")


def wait_for_adapter(url: str) -> None:
    """Wait until the server serves the adapter."""
    deadline = time.monotonic() + 30
    body = {"prompt": PROMPTS[0], "steps": 1, "adapters": [{"name": "ink"}]}
    while httpx.post(f"{url}/generate", json=body, timeout=60).status_code != 200:
        if time.monotonic() > deadline:
            raise SystemExit("the server did not find the adapter; see its log")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
