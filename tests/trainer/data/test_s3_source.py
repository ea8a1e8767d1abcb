"""Scans of pictures in an S3 bucket."""

from pathlib import Path

import boto3
import pytest
from PIL import Image

from longcat.errors import DataError, StorageError
from tests.conftest import BUCKET
from tests.trainer.data.scans import keys, look, problem_of, reasons
from tests.trainer.data.test_pictures import encoded
from trainer.config.dataset_options import DatasetConfig
from trainer.data.pictures import read_mask, read_pixels


@pytest.fixture
def in_store(s3_endpoint: str, tmp_path: Path) -> DatasetConfig:
    """Return a bucket's prefix with pictures whose names need quoting."""
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    prefix = f"data sets/{tmp_path.name}/猫 & 狗"
    good = [encoded(Image.new("RGB", (128, 128), colour), "PNG") for colour in ((9, 8, 7), (3, 2, 1))]
    for key, content in {
        "a cat (1).png": good[0], "a cat (1).txt": "一只猫".encode("gb18030"), "deep/猫+#?%20.PNG": good[1],
        "deep/猫+#?%20.txt": b"a dog", "empty.png": b"", "cut.png": good[0][:60], "no caption.png": good[0],
        ".hidden.png": b"x", "deep/": b"",
    }.items():  # fmt: skip
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=content)
    client.put_object(Bucket=BUCKET, Key=f"{prefix} too/a.png", Body=good[0])
    return DatasetConfig.model_validate(
        {"id": "store", "instance_data_dir": f"s3://{BUCKET}/{prefix}/", "aws_endpoint_url": s3_endpoint}
    )


def test_a_bucket_of_pictures(in_store: DatasetConfig, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    found = look(in_store, index_file=index)
    assert {s.key: s.captions for s in found.samples} == {"a cat (1).png": ("一只猫",), "deep/猫+#?%20.PNG": ("a dog",)}
    assert reasons(found).keys() == {"empty.png", "cut.png", "no caption.png"}
    assert [read_pixels(sample)[0, 0].tolist() for sample in found.samples] == [[9, 8, 7], [3, 2, 1]]
    again = look(in_store, index_file=index)
    assert (again.hash, again.samples) == (found.hash, found.samples)
    client = boto3.client("s3", endpoint_url=in_store.aws_endpoint_url)
    where = {"Bucket": BUCKET, "Key": f"{in_store.aws_data_prefix.rstrip('/')}/a cat (1).png"}
    client.put_object(**where, Body=encoded(Image.new("RGB", (128, 128), (5, 5, 5)), "PNG"))
    with pytest.raises(DataError, match=r"file = a cat \(1\).png: changed since"):
        read_pixels(found.samples[0])
    assert look(in_store, index_file=index).hash != found.hash
    client.delete_object(**where)
    with pytest.raises(DataError, match="no longer: does not exist"):
        read_pixels(found.samples[0])
    assert keys(look(in_store, index_file=index)) == ["deep/猫+#?%20.PNG"]


def test_a_bucket_that_is_not_there_or_empty(in_store: DatasetConfig) -> None:
    with pytest.raises(StorageError, match=r"bucket of .* does not exist"):
        look(in_store.model_copy(update={"aws_bucket_name": "nowhere"}))
    assert f"s3://{BUCKET}/no such place" in str(
        problem_of(in_store.model_copy(update={"aws_data_prefix": "no such place"}))
    )


def test_masks_in_a_bucket(in_store: DatasetConfig, tmp_path: Path) -> None:
    client = boto3.client("s3", endpoint_url=in_store.aws_endpoint_url)
    prefix = f"{in_store.aws_data_prefix.rstrip('/')}/masks"
    mask = encoded(Image.new("L", (64, 64), 200), "PNG")
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/deep/猫+#?%20.png", Body=mask)
    masks = in_store.model_copy(
        update={"id": "masks", "aws_data_prefix": prefix, "dataset_type": "conditioning", "conditioning_type": "mask"}
    )
    found = look(in_store.model_copy(update={"conditioning_data": "masks"}), masks, index_file=tmp_path / "index.json")
    assert keys(found) == ["deep/猫+#?%20.PNG"]  # masks below the pictures' prefix are not training pictures
    assert {drop.key for drop in found.dropped if drop.problem.code == "mask_missing"} == {
        "a cat (1).png", "no caption.png", "empty.png", "cut.png",
    }  # fmt: skip
    assert read_mask(found.samples[0]).tolist() == [[200] * 16] * 16
