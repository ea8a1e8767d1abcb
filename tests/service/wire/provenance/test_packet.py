"""What picture files carry: the label of generated pictures, and the recipe. exiftool reads them as well."""

import io
import json
import os
import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lithograph.__main__ import cli
from longcat.errors import ConfigError, RecipeError
from service.wire.editing.fields import kind_of
from service.wire.picture import ModelIdentity, PictureWriter, Recipe, encode_picture, metadata_in, read_recipe
from service.wire.provenance.packet import (
    EDITED_SOURCE,
    GENERATED_SOURCE,
    LARGEST_PACKET_BYTES,
    content_id_of,
    properties_of,
    xmp_packet,
)
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import ResolvedRequest

FORMATS = ("png", "jpeg", "webp")
PROMPTS = ("一只猫 'q' 😀", 'a <cat> & "dog" ]]>', "a\x01b\x7f\x85\ufffe\uffff\u2028", "\ufeffcat", "&lt;x&gt;")
MODEL = ModelIdentity(
    flavour="embedded", revision=None, hash="0" * 64, precision="no_change", text_encoder_precision="no_change",
    dtype="float32",
)  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def a_request(output_format: str, prompt: str = PROMPTS[0]) -> ResolvedRequest:
    return ResolvedRequest.model_validate(
        {
            "prompt": prompt, "negative_prompt": "", "width": 64, "height": 64, "steps": 3, "guidance_scale": 2.5,
            "seed": 4, "num_images": 1, "cfg_renorm": True, "rewrite_prompt": False, "output_format": output_format,
        }
    )  # fmt: skip


def file_of(output_format: str, prompt: str = PROMPTS[0], **settings: str) -> bytes:
    writer = PictureWriter(MODEL, ProvenanceConfig(**settings))
    return writer.file_of(PIXELS, a_request(output_format, prompt), 0, ())


def written(folder: Path, output_format: str, **options: Any) -> Path:
    path = folder / f"picture.{output_format}"
    path.write_bytes(file_of(output_format, **options))
    return path


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_format_carries_the_recipe_that_makes_it_again(tmp_path: Path, output_format: str, prompt: str) -> None:
    path = written(tmp_path, output_format, prompt=prompt, picture_producer="工作室 <A> & B")
    recipe = read_recipe(path)
    assert recipe == Recipe(request=a_request(output_format, prompt), model=MODEL, producer="工作室 <A> & B")
    assert encode_picture(PIXELS, recipe) == path.read_bytes()


@pytest.mark.parametrize("output_format", FORMATS)
def test_other_programs_read_the_label(tmp_path: Path, output_format: str) -> None:
    path = written(tmp_path, output_format, picture_producer="ACME")
    read = subprocess.run(["exiftool", "-j", "-G1", "-struct", path], capture_output=True, text=True, check=True)
    (tags,) = json.loads(read.stdout)
    assert tags["XMP-iptcExt:DigitalSourceType"] == GENERATED_SOURCE
    label = tags["XMP-TC260:Aigc"]  # exiftool 12 writes names it does not know in this way
    label = json.loads(label) if isinstance(label, str) else label
    assert (label["Label"], label["ContentProducer"]) == ("1", "ACME")
    assert len(label["ProduceID"]) == 32
    assert "Warning" not in json.dumps(tags)


EDITS = {
    "img2img": {"strength": 0.6},
    "inpaint": {"strength": 1.0, "mask_sha256": "c" * 64},
    "outpaint": {"strength": 1.0, "expand": {"left": 64}},
    "edit": {"strength": 1.0, "is_reference": True},
}


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("kind", EDITS)
def test_a_picture_made_from_another_one_is_labelled_as_such(tmp_path: Path, output_format: str, kind: str) -> None:
    fields = {"edit": {"image_sha256": "b" * 64} | EDITS[kind]}
    request = ResolvedRequest.model_validate(a_request(output_format).model_dump() | fields)
    assert kind_of(request.edit) == kind
    path = tmp_path / "picture"
    path.write_bytes(PictureWriter(MODEL, ProvenanceConfig()).file_of(PIXELS, request, 0, ()))
    read = subprocess.run(["exiftool", "-j", "-G1", path], capture_output=True, text=True, check=True)
    assert json.loads(read.stdout)[0]["XMP-iptcExt:DigitalSourceType"] == EDITED_SOURCE
    facts = verified(path)
    assert (facts["made by a model"], facts["from another picture"]) == (True, True)
    assert facts["label and recipe agree"] is True


@pytest.mark.parametrize("output_format", FORMATS)
def test_label_and_recipe_can_be_left_out_and_change_no_pixel(tmp_path: Path, output_format: str) -> None:
    both, bare = file_of(output_format), file_of(output_format, picture_label="off", picture_recipe="off")
    assert np.array_equal(pixels_of(both), pixels_of(bare))
    assert not {word for word in (b"xmp", b"lithograph", b"AIGC", "一只猫".encode()) if word in bare}
    unlabelled = written(tmp_path, output_format, picture_label="off")
    assert read_recipe(unlabelled).producer is None
    assert metadata_in(unlabelled, name="x").keys() == {"lithograph:recipe"}
    without_recipe = file_of(output_format, picture_recipe="off")
    assert "一只猫".encode() not in without_recipe
    path = tmp_path / "private"
    path.write_bytes(without_recipe)
    assert metadata_in(path, name="x").keys() == {"Iptc4xmpExt:DigitalSourceType", "TC260:AIGC"}
    with pytest.raises(RecipeError, match="carries no recipe"):
        read_recipe(path)


def test_a_recipe_of_a_file_without_a_label_is_as_before_there_were_labels() -> None:
    recipe = Recipe(request=a_request("png"), model=MODEL)
    assert "producer" not in recipe.as_json()
    assert Recipe.model_validate_json(recipe.as_json()) == recipe


def test_a_recipe_too_long_for_a_jpeg_is_left_out_and_the_label_is_not(tmp_path: Path) -> None:
    path = written(tmp_path, "jpeg", prompt="猫" * 30_000)
    assert metadata_in(path, name="x").keys() == {"Iptc4xmpExt:DigitalSourceType", "TC260:AIGC"}
    assert read_recipe(written(tmp_path, "png", prompt="猫" * 30_000)).request.prompt == "猫" * 30_000
    packet = xmp_packet(source=GENERATED_SOURCE, producer="p", recipe='"' + "&" * 20_000 + '"', content_id="1")
    assert len(packet) <= LARGEST_PACKET_BYTES


def test_a_packet_that_another_program_wrote_again_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "jpeg")
    recipe = read_recipe(path)
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-XMP-dc:Title=Cat", path], check=True)
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    "packet",
    [
        b"", b"<", b"\xff\xfe<x/>", b"<x:xmpmeta/>", b"<a>" * 20_000,
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
    ],
)  # fmt: skip
@pytest.mark.parametrize("output_format", ["JPEG", "WEBP"])
def test_a_strange_packet_is_an_error_of_ours(tmp_path: Path, packet: bytes, output_format: str) -> None:
    path = tmp_path / "picture"
    Image.new("RGB", (8, 8)).save(path, output_format, xmp=packet)
    with pytest.raises(RecipeError):
        read_recipe(path)


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with more chunks, by kind, before its pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    end_of_header = 33
    added = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return buffer.getvalue()[:end_of_header] + added + buffer.getvalue()[end_of_header:]


def with_checksums(png: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of their bytes, as a program writes them that changes one."""
    at, parts = 8, [png[:8]]
    while at < len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4])
        parts += [png[at:end], zlib.crc32(png[at + 4 : end]).to_bytes(4)]
        at = end + 4
    return b"".join(parts)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (png_with((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 400_000)), "XMP.*more than 1048576 bytes"),
        (png_with((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<a")), "has metadata .XMP. that cannot be read"),
        (png_with((b"iTXt", b"lithograph\0\0\0\0\0" + b"[" * 10_000)), "cannot read, at JSON; use the version"),
        (png_with((b"prVt", bytes(65 * 2**20))), "cannot be read as a picture: it has more than 67108864 bytes"),
        (b"\xff\xd8" + b"\xff" * (65 * 2**20), "cannot be read as a picture: it has more than 67108864 bytes"),
    ],
    ids=["deep XML", "cut XML", "deep JSON", "private chunk", "filler"],
)
def test_a_file_that_would_take_memory_or_time_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(RecipeError, match=problem):
        read_recipe(path)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 32 * 2**20


def test_verify_does_not_wait_for_the_writer_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="it is not a regular file"):
        read_recipe(tmp_path / "pipe")


def test_properties_are_found_as_elements_and_as_attributes() -> None:
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:RDF><r:Description '
        'xmlns:t="http://www.tc260.org.cn/ns/AIGC/1.0/" t:AIGC="{}" xmlns:o="urn:other" o:AIGC="no"/></r:RDF></x:xmpmeta>'
    )
    assert properties_of(packet.encode()) == {"TC260:AIGC": "{}"}


@pytest.mark.parametrize("producer", ["", "a" * 201])
def test_a_producer_has_bounds(producer: str) -> None:
    with pytest.raises(ConfigError, match="picture_producer"):
        ProvenanceConfig(picture_producer=producer)


def verified(path: Path) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["verify", str(path), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    facts: dict[str, Any] = json.loads(result.output)
    return facts


@pytest.mark.parametrize("output_format", FORMATS)
def test_verify_shows_what_a_file_carries(tmp_path: Path, output_format: str) -> None:
    facts = verified(written(tmp_path, output_format, picture_producer="ACME"))
    assert (facts["made by a model"], facts["producer"], facts["label and recipe agree"]) == (True, "ACME", True)
    assert facts["recipe"]["request"]["seed"] == 4
    assert facts["from another picture"] is False
    bare = verified(written(tmp_path, output_format, picture_label="off", picture_recipe="off"))
    assert (bare["made by a model"], bare["from another picture"], bare["recipe"]) == (False, None, None)
    assert bare["label and recipe agree"] is None


def test_verify_finds_an_exchanged_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "webp")
    content = path.read_bytes()
    assert content.count(b'"seed":4') == 1
    path.write_bytes(content.replace(b'"seed":4', b'"seed":5'))
    assert verified(path)["label and recipe agree"] is False
    table = CliRunner().invoke(cli, ["verify", str(path)]).output
    assert "label and recipe agree" in table
    assert content_id_of(read_recipe(path).as_json()) not in table
