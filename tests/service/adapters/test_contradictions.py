"""Manifests that do not match their weights: rejected by verification, never while denoising."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from service.wire.messages import AdapterState
from tests.service.adapters.conftest import Service, put


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"alpha": 99.0}, "its manifest gives alpha 99.0"),
        ({"rank": 3}, "its manifest gives rank 3"),
        ({"tensors": 2}, "its manifest gives tensors 2"),
        ({"use_dora": True}, "its manifest gives use_dora true"),
    ],
)
def test_a_version_with_another_versions_description_is_refused(
    storage: Storage, service: Service, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights],
    changes: dict[str, Any], reason: str,
) -> None:  # fmt: skip
    good = put(storage, model, tmp_path / "new", "ink", some_lora(1))
    service.registry.poll()
    assert (
        service.registry.resolve("ink").manifest == good
    )  # the weights are in memory when the next version is verified
    storage.create("ink/2/adapter.safetensors", storage.read("ink/1/adapter.safetensors").content)
    wrong = good.model_copy(update={"version": 2, **changes})
    storage.create("ink/2/manifest.json", wrong.model_dump_json().encode())
    set_latest(storage, "ink", 2)
    service.registry.poll()
    assert service.registry.resolve("ink").manifest == good
    assert service.state("ink") == (AdapterState.OUTDATED, 2, 1)
    assert reason in str(service.registry.status()[0].reason)
    with pytest.raises(AdapterError, match=reason):
        service.registry.resolve("ink@2")
