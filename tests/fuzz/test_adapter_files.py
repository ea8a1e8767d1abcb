"""Damaged adapter files, manifests and storage: one of our errors, never another exception."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from safetensors.torch import save

from longcat.adapter import artifact
from longcat.adapter.foreign.reading import flavour_targets, read_foreign
from longcat.adapter.manifest import Manifest
from longcat.adapter.publishing import set_latest
from longcat.adapter.reference import Reference, parse_reference
from longcat.adapter.verification import check_lora
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.adapter.weights.file import METADATA, as_file, load_lora
from longcat.errors import LithographError
from longcat.model.flavour import Flavour
from longcat.storage.opening import open_storage
from tests.fuzz.cases import check_error, sweep, try_all
from tests.fuzz.values.adapters import MODULE, file_of, small
from tests.fuzz.values.strange import (
    INTEGERS,
    ODD_VALUES,
    RAW_JSON,
    TEXTS,
    VALUES,
    broken,
    changed_within,
    json_bytes,
    paths_in,
    replaced,
)

DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "I64",
    "U8",
    "BOOL",
    "C64",
    "X",
)


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return a safetensors file's header and its data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: bytes, data: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@st.composite
def headers(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """Return a header with a field replaced, a tensor of another type or shape, or other metadata."""
    header = json.loads(json.dumps(valid))
    names = [name for name in header if name != "__metadata__"]
    name = draw(st.sampled_from(names))
    match draw(st.sampled_from(["any", "dtype", "shape", "offsets", "metadata", "config", "key", "raw"])):
        case "any":
            header = draw(changed_within(header))
        case "dtype":
            header[name]["dtype"] = draw(st.sampled_from(DTYPES))
        case "shape":
            header[name]["shape"] = draw(st.lists(INTEGERS, max_size=4))
        case "offsets":
            header[name]["data_offsets"] = draw(st.lists(INTEGERS, max_size=3))
        case "metadata":
            header["__metadata__"] = draw(st.dictionaries(st.one_of(st.just(METADATA), TEXTS), TEXTS, max_size=3))
        case "config":
            config = json.loads(header["__metadata__"][METADATA])
            text = draw(st.one_of(json_bytes(changed_within(config)), RAW_JSON)).decode("utf-8", "replace")
            header["__metadata__"][METADATA] = text
        case "key":
            header[draw(st.one_of(TEXTS, st.sampled_from(FOREIGN_KEYS)))] = header.pop(name)
        case "raw":
            return draw(st.one_of(RAW_JSON, st.binary(max_size=60)))
    return json.dumps(header).encode("utf-8", "replace")


FOREIGN_KEYS = (
    f"transformer.{MODULE}.lora_A.weight", f"transformer.{MODULE}.lora_C.weight",
    f"transformer.{MODULE}.alpha", "transformer.",
    f"base_model.model.{MODULE}.lora_A.weight", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    "lora_unet_x.alpha",
    "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", f"transformer.{MODULE}.lora_magnitude_vector",
    f"transformer.{MODULE}.lora.up.weight", f"transformer.{MODULE}.lokr_w1", "lycoris_x.hada_w1_a", "a.lora_A.weight" * 50,
)  # fmt: skip


@st.composite
def adapter_files(draw: st.DrawFn) -> bytes:
    """Return a whole file with a strange header, a wrong length, or broken bytes."""
    valid = file_of(small(rank=draw(st.sampled_from([0, 1, 2]))))
    header, data = split(valid)
    match draw(st.integers(0, 9)):
        case 0:
            return draw(broken(st.just(valid)))
        case 1:
            return joined(draw(headers(header)), data, length=draw(st.integers(0, 2**64 - 1)))
        case 2:
            return draw(st.binary(max_size=40))
        case 3:  # infinite numbers, or none
            return joined(json.dumps(header).encode(), bytes([draw(st.sampled_from([0, 0x7F, 0xFF]))]) * len(data))
    return joined(draw(headers(header)), data)


@pytest.fixture(scope="module")
def targets(flavour: Flavour) -> dict[str, tuple[int, int]]:
    return flavour_targets(flavour)


def test_the_file_that_is_changed_is_a_good_one(tmp_path: Path, targets: dict[str, tuple[int, int]]) -> None:
    assert targets[MODULE] == (256, 256)
    (tmp_path / "a.safetensors").write_bytes(file_of(small()))
    check_lora(load_lora(tmp_path / "a.safetensors"), targets, max_rank=64)


def test_no_weights_file_raises_another_exception(tmp_path: Path, targets: dict[str, tuple[int, int]]) -> None:
    path = tmp_path / "a.safetensors"
    accepted = 0

    def check(content: bytes) -> None:
        nonlocal accepted
        path.write_bytes(content)
        for read in (lambda: check_lora(load_lora(path), targets, max_rank=64), lambda: read_foreign(path, targets)):
            try:
                read()
                accepted += 1
            except LithographError as error:
                check_error(error)

    try_all("weights files", check, adapter_files(), cases=80)
    assert accepted


def test_no_peft_configuration_raises_another_exception(tmp_path: Path, targets: dict[str, tuple[int, int]]) -> None:
    tensors, _ = as_file(small())
    official = {key.replace("transformer.", "base_model.model."): tensor for key, tensor in tensors.items()}
    (tmp_path / "adapter_model.safetensors").write_bytes(save(official))
    valid = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"to_q": 4.0}, "bias": "none",
        "use_rslora": False, "use_dora": False, "init_lora_weights": True, "modules_to_save": None,
    }  # fmt: skip
    patterns = st.dictionaries(
        st.one_of(st.sampled_from(["(", "(a+)+$", ".*", "a{99999}", "(?P<x>", "to_q"]), TEXTS), INTEGERS
    )
    values = st.one_of(VALUES, patterns)

    def check(content: bytes) -> None:
        (tmp_path / "adapter_config.json").write_bytes(content)
        try:
            read_foreign(tmp_path, targets)
        except LithographError as error:
            check_error(error)

    check(json.dumps(valid).encode())
    try_all("PEFT configurations", check, json_bytes(changed_within(valid, values)), cases=80)


def test_no_manifest_raises_another_exception(tmp_path: Path, flavour: Flavour) -> None:
    storage = open_storage(tmp_path.as_uri())
    weights = small()
    manifest = publish_lora(storage, "ink", draft_of(weights, flavour, origin="trained"), weights)
    set_latest(storage, "ink", 1)
    valid = json.loads(manifest.model_dump_json())
    path = tmp_path / "ink" / "1" / "manifest.json"
    good = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            found = artifact.find(storage, Reference(name="ink", version=None))
            assert isinstance(found, Manifest)
            Manifest.model_validate_json(found.model_dump_json())
            artifact.fetch(storage, found, tmp_path / "cache")
        except LithographError as error:
            check_error(error)

    check(good)
    odd = [replaced(valid, {name: value}) for name in paths_in(valid) for value in ODD_VALUES]
    sweep("manifest fields", check, [json.dumps(manifest).encode() for manifest in odd])
    try_all("manifests", check, json_bytes(changed_within(valid)), cases=120)


def test_no_content_of_latest_raises_another_exception(tmp_path: Path, flavour: Flavour) -> None:
    storage = open_storage(tmp_path.as_uri())
    weights = small()
    publish_lora(storage, "ink", draft_of(weights, flavour, origin="trained"), weights)

    def check(content: bytes) -> None:
        (tmp_path / "ink" / "latest").write_bytes(content)
        for use in (
            lambda: artifact.find(storage, Reference(name="ink", version=None)),
            lambda: artifact.previous_version(storage, "ink"),
            lambda: set_latest(storage, "ink", 1, only_forward=True),
        ):
            try:
                use()
            except LithographError as error:
                check_error(error)

    contents = st.one_of(
        broken(st.sampled_from([b"1\n", b"2", b"1" * 300])), TEXTS.map(lambda t: t.encode("utf-8", "replace"))
    )
    try_all("latest", check, contents, cases=100)


def test_no_reference_raises_another_exception() -> None:
    def check(text: str) -> None:
        try:
            reference = parse_reference(text)
        except LithographError as error:
            check_error(error)
        else:
            assert reference.name.isprintable()
            assert "/" not in reference.name

    references = st.one_of(
        TEXTS, st.tuples(TEXTS, st.sampled_from(["@", "@1", "@01", "\n", "@9999999999"])).map("".join)
    )
    try_all("references", check, references, cases=80)


def test_an_adapter_is_still_found_beside_strange_names(tmp_path: Path, flavour: Flavour) -> None:
    storage = open_storage((tmp_path / "root").as_uri())
    weights = small()
    publish_lora(storage, "ink", draft_of(weights, flavour, origin="trained"), weights)

    def check(name: str, inner: str) -> None:
        path = tmp_path / "root" / name.replace("/", "-").replace("\0", "-")[:60] / inner
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"1")
        except (OSError, UnicodeEncodeError):  # an invalid file name
            return
        try:
            assert ("ink", 1) in set(artifact.list_versions(storage))
            assert artifact.find(storage, Reference(name="ink", version=1)).version == 1
        finally:
            path.unlink()

    inner = st.sampled_from(
        ["latest", "1/manifest.json", "x/manifest.json", "99999999999/manifest.json", "1/2/manifest.json", "a b"]
    )
    try_all("names in storage", check, TEXTS.filter(lambda name: name not in ("", ".", "..", "ink")), inner, cases=100)
