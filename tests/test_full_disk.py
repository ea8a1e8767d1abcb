"""Everything that is written to a disk, on one that is full: the error names the path, and nothing half-written stays."""

import asyncio
import io
import random
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi import UploadFile
from PIL import Image

from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import DiskFullError, StorageError
from longcat.model.loading import Components
from longcat.storage.atomic import write_atomically
from longcat.storage.opening import open_storage
from service.wire.errors import wrapped
from studio.adapters.importing import _copy
from studio.datasets.uploads import UploadLimits, add, create
from studio.generate.gallery import Gallery, GalleryPicture, new_id
from studio.generate.recipe import PictureRecipe
from studio.web.error_pages import error_of, status_of
from tests.conftest import fill, run_lithograph
from tests.longcat.sampling.test_slots import random_lora
from trainer.encode.cache import Cache
from trainer.loop.checkpoint import Origin, save_checkpoint
from trainer.record.outcome import Outcome, outcome_of, problems_of

CONTENT = random.Random(0).randbytes(2**20)


def noise() -> bytes:
    """A PNG of a few hundred kB."""
    pixels = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def nearly_full(small_disk: Path) -> Path:
    """A disk with 64 KiB left: directories and small files fit, nothing else."""
    filler = fill(small_disk)
    with filler.open("r+b") as stream:
        stream.truncate(filler.stat().st_size - 2**16)
    return small_disk


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "filler")


def storage_upload(folder: Path, _: Components) -> None:
    with tempfile.NamedTemporaryFile() as source:  # on another disk
        source.write(CONTENT)
        source.flush()
        open_storage((folder / "root").as_uri()).create("ink/1/adapter.safetensors", Path(source.name))


def storage_download(folder: Path, _: Components) -> None:
    (folder / "scratch").mkdir()
    with tempfile.TemporaryDirectory() as other_disk:
        (Path(other_disk) / "key").write_bytes(CONTENT)
        try:
            open_storage(Path(other_disk).as_uri()).download("key", folder / "scratch" / "key")
        finally:
            (folder / "scratch" / "key").unlink()  # as the scratch directory of every caller


def upload(folder: Path, _: Components) -> None:
    create(folder / "datasets" / "cats", [("cat.png", io.BytesIO(noise()))], UploadLimits())


def upload_more(folder: Path, _: Components) -> None:
    add(folder / "datasets" / "cats", [("cat.png", io.BytesIO(noise()))], UploadLimits())


def gallery(folder: Path, _: Components) -> None:
    now = datetime.now(UTC)
    picture = GalleryPicture(
        id=new_id(now), created=now, recipe=PictureRecipe(prompt="a cat"), flavour="embedded", model_hash="0", seconds=1,
        drawn_prompt="",
    )  # fmt: skip
    Gallery(folder / "gallery").add(noise(), picture)


def adapter_upload(folder: Path, _: Components) -> None:
    target = folder / "adapter.safetensors"
    try:
        asyncio.run(_copy(UploadFile(io.BytesIO(CONTENT)), target))
    finally:
        target.unlink()  # as the scratch directory does


def checkpoint(folder: Path, model: Components) -> None:
    save_checkpoint(
        folder / "checkpoints",
        weights(model),
        {},
        step=1,
        origin=Origin(options={}, base_hash="0", dataset_hash="0"),
        losses=(),
        best=None,
        keep=1,
    )


def cached(folder: Path, _: Components) -> None:
    Cache(folder / "cache").write("0" * 8, torch.zeros(2**18))


def atomic(folder: Path, _: Components) -> None:
    write_atomically(folder / "run.json", CONTENT)


def weights(model: Components) -> LoraWeights:
    return random_lora(lora_targets(model.transformer), seed=0, rank=64)


@pytest.mark.parametrize(
    "write",
    [
        storage_upload, storage_download, upload, upload_more, gallery, adapter_upload, checkpoint, cached, atomic,
    ],
)  # fmt: skip
def test_it_is_named_and_nothing_half_written_stays(
    nearly_full: Path, model: Components, write: Callable[[Path, Components], None]
) -> None:
    with pytest.raises(StorageError) as caught:
        write(nearly_full, model)
    message = str(caught.value)
    assert str(nearly_full) in message
    assert "free space on that disk" in message
    assert files(nearly_full) == []


def test_the_command_line_names_it(nearly_full: Path, tmp_path: Path) -> None:
    output = nearly_full / "picture.png"
    with (nearly_full / "rest").open("wb") as rest:
        rest.write(bytes(2**16 - 4096))
    done = run_lithograph(
        "generate", "a cat", "--steps", "1", "--width", "256", "--height", "256", "-o", str(output), cwd=tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert f"error: --output = {output}: cannot be written: its disk is full" in done.stderr
    assert files(nearly_full) == ["rest"]


def test_a_bare_error_of_the_system_is_named_where_errors_end(nearly_full: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught:
        (nearly_full / "file").write_bytes(CONTENT)
    assert outcome_of(caught.value) is Outcome.STORAGE_DOWN
    assert problems_of(caught.value)[0].code == "disk_full"
    assert isinstance(error_of(caught.value), DiskFullError)
    assert status_of(error_of(caught.value)) == 503
    assert isinstance(wrapped(caught.value), DiskFullError)
