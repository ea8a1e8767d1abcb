"""The catalogue of adapter storage: one broken adapter hides none of the others."""

from pathlib import Path

import pytest

from longcat.adapter.publishing import publish, set_latest
from longcat.adapter.weights.draft import draft_of
from longcat.adapter.weights.file import save_lora
from longcat.model.loading import Components
from longcat.storage.files import FileStorage
from studio.adapters.catalogue import AdapterCatalogue
from studio.web.errors import PictureNotFoundError
from tests.longcat.adapter.test_artifact import some_lora


def test_a_broken_adapter_hides_no_other(model: Components, tmp_path: Path) -> None:
    weights = some_lora(model)
    save_lora(weights, tmp_path / "file")
    storage = FileStorage(tmp_path / "root")
    for name in ("ink", "oil", "wax", "wax"):
        manifest = publish(storage, name, draft_of(weights, model.flavour, origin="trained"), tmp_path / "file")
        set_latest(storage, name, manifest.version)
    (tmp_path / "root" / "oil" / "latest").write_bytes(b"9" * 300)
    broken = tmp_path / "root" / "wax" / "1" / "manifest.json"
    broken.unlink()
    broken.mkdir()
    catalogue = AdapterCatalogue(storage.uri, endpoint_url=None, cache=tmp_path / "cache")
    ink, oil, wax = catalogue.all()
    assert (ink.latest, len(ink.versions), ink.latest_problem) == (1, 1, None)
    assert (oil.latest, len(oil.versions)) == (None, 1)
    assert oil.latest_problem is not None
    assert oil.latest_problem.code == "adapter_latest_invalid"
    assert (wax.latest, [version.version for version in wax.versions]) == (2, [2])
    assert {number: problem.code for number, problem in wax.broken.items()} == {1: "storage_not_a_file"}


def test_nothing_but_pictures_of_the_version_is_shown(model: Components, tmp_path: Path) -> None:
    weights = some_lora(model)
    save_lora(weights, tmp_path / "file")
    storage = FileStorage(tmp_path / "root")
    (tmp_path / "secret.png").write_text("root-password")
    outside, link, missing = "../../../secret.png", "link.png", "missing.png"
    keys = (outside, link, missing)
    made = draft_of(weights, model.flavour, origin="trained", validation_images=keys)
    manifest = publish(storage, "ink", made, tmp_path / "file")
    (tmp_path / "root" / "ink" / "1" / link).symlink_to(tmp_path / "secret.png")
    catalogue = AdapterCatalogue(storage.uri, endpoint_url=None, cache=tmp_path / "cache")
    for key in keys:
        with pytest.raises(PictureNotFoundError):
            catalogue.validation_image(manifest, key)
    assert catalogue.validation_images(manifest) == []
    assert not list((tmp_path / "cache").rglob("*.png"))
