"""Storage URIs: percent-decoded, and rejected if a part would be ignored."""

from pathlib import Path

import pytest

from longcat.errors import StorageError
from longcat.storage.address import FileAddress, S3Address, parse_address
from longcat.storage.files import FileStorage
from longcat.storage.opening import open_storage


@pytest.mark.parametrize(
    "uri",
    [
        "", "adapters", "/adapters", "ftp://host/a", "s3://", "s3:///a", "file://host/a", "file:adapters", "file://", "file://[",
        "s3://[bucket/a", "s3://me:secret@bucket/a", "s3://bucket:80/a", " file:///a", "file:///a ", "file:///a\n", "file:///a\tb",
        "file:///a%00b", "s3://bucket/a%0Ab", "s3://bucket/%FF",
    ],
)  # fmt: skip
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="give file:///directory or s3://bucket/prefix"):
        open_storage(uri)


@pytest.mark.parametrize(
    ("uri", "corrected"),
    [
        ("file:///a/c#proj", "file:///a/c%23proj"),
        ("file:///a/c#", "file:///a/c%23"),
        ("file:///a?b", "file:///a%3Fb"),
        ("s3://bucket/pre#fix", "s3://bucket/pre%23fix"),
        ("s3://bucket/pre?fix#", "s3://bucket/pre%3Ffix%23"),
        ("s3://bucket?versionId=1", "s3://bucket%3FversionId=1"),
    ],
)
def test_a_fragment_or_query_is_refused_with_its_encoding(uri: str, corrected: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_address(uri, field="publish_to")
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.value) == ("storage_uri_not_encoded", "publish_to", uri)
    assert problem.remedy.endswith(f": {corrected}")
    assert ("%23" if "#" in uri else "%3F") in problem.remedy


@pytest.mark.parametrize("name", ["c#proj", "a?b", "100%", "a%23b", "with space", "画", "a\udcffb", "ü+&=;@:"])
def test_every_directory_has_a_uri(tmp_path: Path, name: str) -> None:
    storage = FileStorage(tmp_path / name)
    storage.create("latest", b"1")
    assert open_storage(storage.uri).read("latest").content == b"1"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_both_forms_are_decoded_and_written_again() -> None:
    assert parse_address("file:///a%23b/c%20d") == FileAddress(folder=Path("/a#b/c d"))
    assert parse_address("file://localhost/a") == parse_address("file:/a") == FileAddress(folder=Path("/a"))
    for uri, prefix in (
        ("s3://b/pre%23fix", "pre#fix"),
        ("s3://b/x%3Fy%25/", "x?y%"),
        ("s3://b", ""),
        ("s3://b/画/e", "画/e"),
        ("s3://b/a b%20", "a b "),
    ):
        address = parse_address(uri)
        assert address == S3Address(bucket="b", prefix=prefix)
        assert str(address) == uri.rstrip("/")
        assert parse_address(str(address)) == address
