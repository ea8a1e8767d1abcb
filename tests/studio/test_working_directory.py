"""Child processes in a working directory with files named like our packages: ours are run, not the user's."""

import asyncio
import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image
from starlette.datastructures import UploadFile

from studio.adapters.importing import Importer
from studio.config import StudioConfig
from studio.connection.own_service import OwnService
from studio.connection.service_connection import ConnectionState
from studio.jobs.executor import LocalExecutor
from studio.jobs.record import CONFIG_FILE, LOG_FILE, OUTPUT, JobRecord
from studio.training.devices import LocalDevices
from tests.conftest import START_SECONDS
from tests.studio.boundaries import boundary
from trainer.config.options import TrainConfig

HOSTILE = "raise SystemExit('a file of the working directory was run')\n"
NAMES = ("trainer.py", "longcat.py", "studio.py", "lithograph.py", "json.py", "torch.py", "service/__init__.py")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change the working directory for one test."""
    folder = tmp_path / "work"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(HOSTILE, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def train(home: Path, pictures: Path) -> Path:
    """Run a job of one step and return its adapter's weights."""
    config = TrainConfig.model_validate(
        {
            "model_flavour": "embedded", "instance_data_dir": str(pictures), "resolution": 128, "max_train_steps": 1,
            "lora_rank": 2, "validation_disable": True, "adapter_name": "red",
        }
    )  # fmt: skip
    folder = home / "job"
    folder.mkdir()
    executor = LocalExecutor(
        cache=home / "cache", adapters=(home / "adapters").as_uri(), boundary=boundary(home, pictures)
    )
    (folder / CONFIG_FILE).write_text(json.dumps(executor.options(config, folder)), encoding="utf-8")
    now = datetime.now(UTC)
    job = executor.start(JobRecord(id="red", name="red", created=now, queued=now), folder)
    deadline = time.monotonic() + START_SECONDS
    while executor.status(job, folder).is_alive:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert executor.status(job, folder).exit_code == 0, (folder / LOG_FILE).read_text(encoding="utf-8")
    return next((folder / OUTPUT).rglob("adapter.safetensors"))


async def serve_until_ready(config: StudioConfig) -> None:
    service = OwnService(config)
    await service.start()
    try:
        async with asyncio.timeout(START_SECONDS):
            while service.connection.state is not ConnectionState.READY:
                assert "working directory" not in str(service.connection.detail)
                await asyncio.sleep(0.2)
    finally:
        await service.stop()


@pytest.mark.usefixtures("hostile")
def test_a_job_an_import_the_service_and_the_plan_run_our_modules(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (128, 128), "red").save(pictures / "0.png")
    (pictures / "0.txt").write_text("a red square", encoding="utf-8")
    config = StudioConfig(home=tmp_path / "home")
    config.home.mkdir()

    weights = train(config.home, pictures)
    upload = UploadFile(io.BytesIO(weights.read_bytes()), filename="red.safetensors")
    published = asyncio.run(Importer(config).publish([upload], "again", (), flavour="embedded"))
    assert published["reference"] == "again@1"
    asyncio.run(serve_until_ready(config))

    devices = LocalDevices()
    assert devices.plan(TrainConfig.model_validate({"model_flavour": "embedded", "instance_data_dir": str(pictures)}))
    devices.close()
