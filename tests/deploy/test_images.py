"""The built images as an operator runs them: read-only, any uid, no capabilities. ``make images`` first."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests import ROOT
from tests.conftest import free_port

pytestmark = pytest.mark.images

ENGINE = os.environ.get("LITHOGRAPH_TEST_ENGINE", "podman")
TAG = os.environ.get("LITHOGRAPH_TEST_TAG", "0.1.0")
SERVICE, TRAINER, STUDIO = (f"lithograph-{target}:{TAG}" for target in ("service", "trainer", "studio"))
INK = ROOT / "examples" / "ink"
ANY_UID = "12345:0"
HARDENED = (
    "--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges", f"--user={ANY_UID}",
    "--network=host",
)  # fmt: skip


def engine(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([ENGINE, *command], capture_output=True, text=True, check=False)
    assert not check or result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    return result


@contextmanager
def running(image: str, *options: str, answers: str) -> Iterator[tuple[str, str]]:
    """Run a container, wait for 200 on the path ``answers``; yield address and id. ``{port}`` is replaced by a free port."""
    port = free_port()
    given = (option.format(port=port) for option in options)
    container = engine("run", "--detach", *HARDENED, *given, image).stdout.strip()
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{url}{answers}").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, engine("logs", container).stderr
            time.sleep(0.5)
        yield url, container
    finally:
        engine("rm", "--force", container)


def serving(adapters: Path) -> AbstractContextManager[tuple[str, str]]:
    """Run a service and wait until it is ready."""
    return running(
        SERVICE, "--env=LITHOGRAPH_SERVE_PORT={port}", "--env=LITHOGRAPH_SERVE_HOST=127.0.0.1",
        f"--volume={adapters}:/adapters:ro", answers="/readyz",
    )  # fmt: skip


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """Create a volume that any uid can write."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "adapters"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def draw(url: str, **options: object) -> httpx.Response:
    return httpx.post(f"{url}/generate", json={"prompt": "一只猫", "seed": 1, **options}, timeout=120)


def test_what_the_trainer_image_publishes_the_running_service_image_serves(adapters: Path, tmp_path: Path) -> None:
    with serving(adapters) as (url, container):
        before = draw(url)
        assert before.status_code == 200, before.text
        assert Image.open(BytesIO(before.content)).size == (128, 128)
        assert engine("exec", container, "id", "-u").stdout.strip() == ANY_UID.partition(":")[0]
        engine("healthcheck", "run", container)
        assert engine("exec", container, "touch", "/opt/venv/x", check=False).returncode != 0
        assert "tini" in engine("exec", container, "cat", "/proc/1/comm").stdout

        output = tmp_path / "output"
        output.mkdir()
        output.chmod(0o777)
        config = json.dumps({"model_flavour": "embedded", "instance_data_dir": "/data", "adapter_name": "ink"})
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "config.json").chmod(0o644)
        training = engine(
            "run", "--rm", *HARDENED, f"--volume={tmp_path / 'config.json'}:/config/config.json:ro",
            f"--volume={INK / 'pictures'}:/data:ro", f"--volume={output}:/output", f"--volume={adapters}:/adapters",
            "--env=LITHOGRAPH_TRAIN_PUBLISH_TO=file:///adapters", TRAINER,
            "train", "--config", "/config/config.json", "max_train_steps=8", "lora_targets=all-linear",
            "learning_rate=2e-3", "resolution=128", "train_batch_size=4", "validation_max_drift=1",
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while (after := draw(url, adapters=[{"name": "ink"}])).status_code == 404 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert after.status_code == 200, after.text + training.stderr
        assert after.headers["x-adapters"].startswith("ink@1;")
        assert after.content != before.content


def test_the_service_image_drains_on_stop(adapters: Path) -> None:
    with serving(adapters) as (_, container):
        engine("stop", "--time", "60", container)
        state = json.loads(engine("inspect", container).stdout)[0]["State"]
        assert state["ExitCode"] == 0


def test_a_wrong_configuration_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "config.json").write_text('{"model_flavor": "embedded"}')
    (tmp_path / "config.json").chmod(0o644)
    result = engine(
        "run", "--rm", *HARDENED, f"--volume={tmp_path}:/config:ro", "--tmpfs=/output:mode=1777", TRAINER, check=False
    )
    assert result.returncode == 78
    assert "did you mean 'model_flavour'?" in result.stderr


def test_the_trainer_image_saves_a_checkpoint_on_sigterm(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    output = tmp_path / "output"
    output.mkdir()
    output.chmod(0o777)
    container = engine(
        "run", "--detach", *HARDENED, f"--volume={INK}:/config:ro", f"--volume={INK / 'pictures'}:/data:ro",
        f"--volume={output}:/output", TRAINER, "train", "--config", "/config/config.json", "instance_data_dir=/data",
        "validation_steps=0", "max_train_steps=100000",
    ).stdout.strip()  # fmt: skip
    try:
        metrics = output / "training" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size):
            assert time.monotonic() < deadline, engine("logs", container).stderr
            time.sleep(0.5)
        engine("kill", "--signal", str(signal.SIGTERM.value), container)
        assert engine("wait", container).stdout.strip() == "75"
        assert any((output / "training").glob("checkpoints/step-*"))
    finally:
        engine("rm", "--force", container)


def test_the_studio_image_requires_a_login(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    refused = engine("run", "--rm", *HARDENED, f"--volume={tmp_path}:/studio", STUDIO, check=False)
    assert refused.returncode != 0
    assert "--token" in refused.stderr
    token = "of-this-test-alone"
    with running(
        STUDIO, "--env=LITHOGRAPH_SERVER_PORT={port}", f"--env=LITHOGRAPH_SERVER_TOKEN={token}",
        f"--volume={tmp_path}:/studio", answers="/healthz",
    ) as (url, container):  # fmt: skip
        engine("healthcheck", "run", container)
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code < 400
        engine("stop", "--time", "60", container)
        assert (
            json.loads(engine("inspect", container).stdout)[0]["State"]["ExitCode"] == 0
        )  # ended by SIGTERM, not SIGKILL


@pytest.mark.parametrize("image", [SERVICE, TRAINER, STUDIO])
def test_no_image_holds_pip_a_compiler_or_a_name_for_root(image: str) -> None:
    found = engine(
        "run", "--rm", "--network=none", "--entrypoint=sh", image, "-c", "command -v pip gcc cc make git || true"
    )
    assert found.stdout == ""
    config = json.loads(engine("image", "inspect", image).stdout)[0]["Config"]
    assert config["User"] == "10001:0"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not [line for line in config["Env"] if "SECRET" in line or "TOKEN" in line or "PIP_" in line]
