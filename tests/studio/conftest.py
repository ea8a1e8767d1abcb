"""A Chromium and a studio for each file of browser tests."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from longcat.adapter.modules import lora_targets
from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.model.flavour import Flavour
from longcat.model.loading import Components
from longcat.storage.opening import open_storage
from tests.longcat.sampling.test_slots import random_lora
from tests.studio.browser import PATIENCE_MS, RunningStudio, chromium, running_studio

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, model: Components, flavour: Flavour) -> Iterator[RunningStudio]:
    """Run a studio with its own service, and an adapter of two versions that visibly changes pictures."""
    home = tmp_path_factory.mktemp("studio") / "home"
    storage = open_storage((home / "adapters").as_uri())
    for seed in (1, 2):
        weights = random_lora(lora_targets(model.transformer), rank=4, seed=seed)
        manifest = publish_lora(storage, "wash", draft_of(weights, flavour, origin="trained"), weights)
        set_latest(storage, "wash", manifest.version)
    with running_studio(home) as running:
        yield running
