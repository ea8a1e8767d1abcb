"""Files of an adapter that are symbolic links: followed, and nothing of another file is shown."""

import hashlib
import json
from pathlib import Path

import pytest

from longcat.adapter import artifact as adapter
from longcat.adapter.artifact import fetch
from longcat.adapter.publishing import publish, set_latest
from longcat.adapter.weights.file import save_lora
from longcat.errors import AdapterError
from longcat.model.loading import Components
from longcat.storage.files import FileStorage
from tests.longcat.adapter.test_artifact import draft, some_lora


@pytest.fixture
def file(model: Components, tmp_path: Path) -> Path:
    save_lora(some_lora(model), tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


_SECRETS = {
    "a line": "root-password",
    "lines": "root-password\nroot-password\n",
    "a number": "4711471147114711",
    "JSON": '{"root-password": "root-password"}',
    "JSON of the same fields": '{"name": 4711, "rank": "root-password", "alpha": 4711, "base": {"root-password": 4711}}',
    "a list": '["root-password", 4711]',
}


@pytest.mark.parametrize("secret", _SECRETS.values(), ids=list(_SECRETS))
def test_errors_show_nothing_of_a_file_that_is_linked_in_place_of_an_adapters(
    model: Components, file: Path, tmp_path: Path, secret: str
) -> None:
    storage, elsewhere = FileStorage(tmp_path / "root"), tmp_path / "elsewhere"
    manifest = publish(storage, "ink", draft(model.flavour, some_lora(model)), file)
    elsewhere.write_text(secret, encoding="utf-8")
    for key in ("latest", "1/adapter.safetensors", "2/manifest.json"):
        link = tmp_path / "root" / "ink" / key
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(elsewhere)
    readings = (
        lambda: adapter.latest_version(storage, "ink"),
        lambda: adapter.read_manifest(storage, "ink", 2),
        lambda: fetch(storage, manifest, tmp_path / "cache"),
    )
    for read in readings:
        with pytest.raises(AdapterError) as caught:
            read()
        shown = json.dumps([problem.to_json() for problem in caught.value.problems])
        assert "root-password" not in shown
        assert "4711" not in shown
        assert hashlib.sha256(secret.encode()).hexdigest()[:12] not in shown


@pytest.mark.parametrize("leads_to_a_number", [True, False])
def test_a_latest_that_is_a_link_is_followed_and_a_rollback_replaces_the_link(
    model: Components, file: Path, tmp_path: Path, leads_to_a_number: bool
) -> None:
    storage, elsewhere = FileStorage(tmp_path / "root"), tmp_path / "elsewhere"
    for _ in range(2):
        publish(storage, "ink", draft(model.flavour, some_lora(model)), file)
    latest = tmp_path / "root" / "ink" / "latest"
    latest.symlink_to(elsewhere)
    if leads_to_a_number:
        elsewhere.write_text("1")
        assert adapter.latest_version(storage, "ink") == 1
    set_latest(storage, "ink", 2)
    assert adapter.latest_version(storage, "ink") == 2
    assert not latest.is_symlink()
    assert not leads_to_a_number or elsewhere.read_text() == "1"
