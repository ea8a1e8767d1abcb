"""Manifests that do not match their weights: rejected by verification, never while denoising."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError
from longcat.model.loading import Components
from longcat.storage.files import FileStorage
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
        ({"size_bytes": 10**6}, "its weights are damaged: [0-9]+ of 1000000 bytes"),
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
    if (size := changes.pop("size_bytes", None)) is not None:
        changes["weights"] = good.weights.model_copy(update={"size_bytes": size})
    wrong = good.model_copy(update={"version": 2, **changes})
    storage.create("ink/2/manifest.json", wrong.model_dump_json().encode())
    set_latest(storage, "ink", 2)
    service.registry.poll()
    assert service.registry.resolve("ink").manifest == good
    assert service.state("ink") == (AdapterState.OUTDATED, 2, 1)
    assert re.search(reason, str(service.registry.status()[0].reason))
    with pytest.raises(AdapterError, match=reason):
        service.registry.resolve("ink@2")


def test_a_damaged_file_fails_alone_while_another_adapter_with_the_same_weights_is_loaded(
    model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    class SlowStorage(FileStorage):
        def download(self, key: str, target: Path, *, max_bytes: int | None = None) -> None:
            if key.startswith("damaged/"):
                is_asked.set()
                may_answer.wait(10)
            super().download(key, target, max_bytes=max_bytes)

    storage = SlowStorage(tmp_path / "root")
    for name in ("damaged", "whole"):
        put(storage, model, tmp_path / "new", name, some_lora(1))
    file = tmp_path / "root" / "damaged" / "1" / "adapter.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    service = Service(storage, model, tmp_path / "downloads")
    service.registry.poll()
    with ThreadPoolExecutor() as pool:
        damaged = pool.submit(service.registry.resolve, "damaged")
        assert is_asked.wait(10)
        threading.Timer(1, may_answer.set).start()
        assert service.registry.resolve("whole").manifest.name == "whole"
        with pytest.raises(AdapterError, match="damaged@1: its weights are damaged"):
            damaged.result()
