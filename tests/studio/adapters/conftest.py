import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from starlette.testclient import TestClient

from longcat.adapter.manifest import Training
from longcat.adapter.modules import lora_targets
from longcat.adapter.publishing import publish, set_latest
from longcat.adapter.weights.draft import draft_of
from longcat.adapter.weights.file import save_lora
from longcat.model.flavour import Flavour
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from studio.app import create_app
from studio.config import StudioConfig
from tests.conftest import RunningServer, serve
from tests.longcat.adapter.foreign.test_reading import PREFIXED, layers_of
from tests.longcat.sampling.test_slots import random_lora
from tests.studio.generate.test_pages import HERE, wait_for


@pytest.fixture(scope="package")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return open_storage(tmp_path_factory.mktemp("adapters").as_uri())


@pytest.fixture(scope="package")
def adapters_server(tmp_path_factory: pytest.TempPathFactory, storage: Storage) -> Iterator[RunningServer]:
    options = ("--adapters", storage.uri, "--adapter-poll-seconds", "0.3", "--admin-key", "secret")
    with serve(tmp_path_factory.mktemp("server"), *options) as running:
        yield running


@pytest.fixture(scope="package")
def visitor(
    adapters_server: RunningServer, storage: Storage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    config = StudioConfig(
        home=tmp_path_factory.mktemp("studio"), service_url=adapters_server.url, service_api_key="secret",
        adapters=storage.uri,
    )  # fmt: skip
    with TestClient(create_app(config), base_url=HERE) as client:
        wait_for(lambda: "pill-ready" in client.get("/service").text)
        yield client


@pytest.fixture(scope="package")
def trained(storage: Storage, model: Components, flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publish two versions of ``wash``, with lineage and a validation picture; the second is the latest."""
    validation_image = tmp_path_factory.mktemp("proofs") / "cat.png"
    metadata = PngImagePlugin.PngInfo()
    metadata.add_itxt("lithograph-validation", json.dumps({"prompt": "一只猫"}))
    Image.new("RGB", (64, 64), "white").save(validation_image, pnginfo=metadata)
    config = {"learning_rate": 2e-4, "lora_rank": 4}
    training = Training(
        precision="no_change", config=config, config_hash=hashlib.sha256(b"config").hexdigest(),
        dataset_hash="d" * 64, steps=120, losses=(0.9, 0.5, 0.4), code_version="0.1.0",
    )  # fmt: skip
    for seed in (1, 2):
        weights = random_lora(lora_targets(model.transformer), rank=4, seed=seed)
        draft = draft_of(
            weights, flavour, origin="trained", trigger_words=("wash",), training=training,
            validation_images=("validation/cat.png",),
        )  # fmt: skip
        save_lora(weights, validation_image.parent / "wash.safetensors")
        manifest = publish(
            storage,
            "wash",
            draft,
            validation_image.parent / "wash.safetensors",
            extras={"validation/cat.png": validation_image},
        )
        set_latest(storage, "wash", manifest.version)
    return "wash"


def kohya_file(folder: Path) -> Path:
    named = {f"lora_unet_{name.removeprefix('transformer.').replace('.', '_')}": at for name, at in PREFIXED.items()}
    save_file(layers_of(named, down="lora_down", up="lora_up"), folder / "My Ink.safetensors")
    return folder / "My Ink.safetensors"
