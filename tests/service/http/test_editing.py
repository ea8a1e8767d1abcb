"""``POST /generate`` with a picture: what it keeps, what it takes, and what it refuses."""

import base64
import io
import json
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.wire.picture import Recipe
from service.wire.provenance.inspection import origin_of
from tests.longcat.sampling.encoding.test_source import middle, photo
from tests.service.http.replies import APPLE, metric, pixels, problem


def file_of(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


ANIMATED = {"kind": "GIF", "save_all": True, "append_images": [Image.new("P", (64, 64), 3)]}
PHOTO, MASK = file_of(photo()), file_of(middle())


def recipe_of(content: bytes) -> Recipe:
    return Recipe.model_validate_json(Image.open(io.BytesIO(content)).info["lithograph"])


def edited(client: httpx.Client, **fields: Any) -> bytes:
    reply = client.post("/generate", json=APPLE | fields)
    assert reply.status_code == 200, reply.text
    return reply.content


def test_json_and_a_form_give_the_same_file(client: httpx.Client) -> None:
    fields = {"prompt": "a red apple", "seed": "1", "steps": "2", "strength": "0.8", "expand": '{"left": 64}'}
    files = {"image": ("a.png", PHOTO), "mask": ("m.png", MASK)}
    form = client.post("/generate", data=fields, files=files)
    assert form.status_code == 200, form.text
    sent = edited(client, image=b64(PHOTO), mask=b64(MASK), strength=0.8, expand={"left": 64})
    assert form.content == sent
    assert pixels(sent).shape == (128, 192, 3)


def test_what_the_mask_keeps_stays_and_the_recipe_names_the_inputs(client: httpx.Client) -> None:
    before = metric(client, "lithograph_pictures_by_kind_total", kind="inpaint")
    content = edited(client, image=b64(PHOTO), mask=b64(MASK))
    changed = (pixels(content) != photo()).any(axis=-1)
    assert changed[32:64, 32:64].mean() > 0.9
    changed[24:72, 24:72] = False
    assert not changed.any()
    edit = recipe_of(content).request.edit
    assert edit is not None
    assert (len(edit.image_sha256), len(edit.mask_sha256 or ""), edit.strength) == (64, 64, 1.0)
    assert origin_of(io.BytesIO(content), name="x").is_edit
    assert metric(client, "lithograph_pictures_by_kind_total", kind="inpaint") == before + 1


def test_a_request_without_a_picture_has_the_recipe_that_it_had_before(client: httpx.Client) -> None:
    content = edited(client)
    text = Image.open(io.BytesIO(content)).info["lithograph"]
    assert "edit" not in json.loads(text)["request"]
    assert not origin_of(io.BytesIO(content), name="x").is_edit


def test_strength_decides_the_steps_that_a_stream_reports(client: httpx.Client) -> None:
    body = APPLE | {"image": b64(PHOTO), "steps": 8, "strength": 0.5, "stream": True, "previews": True}
    events = client.post("/generate", json=body).text
    assert '"step":4,"steps":4' in events
    assert '"step":5' not in events
    assert "event: preview" in events
    assert "event: result" in events


def test_a_job_changes_a_picture(client: httpx.Client) -> None:
    expected = edited(client, image=b64(PHOTO))
    location = client.post("/generate", json=APPLE | {"image": b64(PHOTO), "async": True}).headers["location"]
    while (reply := client.get(f"{location}/result")).status_code == 409:
        pass
    assert reply.content == expected


@pytest.mark.parametrize(
    ("picture", "options", "size"),
    [
        (Image.new("RGB", (1, 1)), {}, (64, 64)),
        (Image.new("RGB", (1, 5000)), {}, (64, 192)),
        (Image.new("RGB", (4000, 3000)), {}, (128, 128)),
        (Image.new("RGB", (200, 140)), {}, (192, 128)),
        (Image.new("CMYK", (128, 64)), {"kind": "JPEG"}, (128, 64)),
        (Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 15), {}, (64, 64)),
        (Image.new("RGBA", (64, 64)), {}, (64, 64)),
        (Image.new("P", (64, 64)), ANIMATED, (64, 64)),
    ],
)  # fmt: skip
def test_pictures_of_all_kinds_give_an_image_of_their_shape(
    client: httpx.Client, picture: Image.Image, options: dict[str, Any], size: tuple[int, int]
) -> None:
    content = edited(client, image=b64(file_of(picture, **options)), steps=1)
    assert Image.open(io.BytesIO(content)).size == size


def test_a_picture_is_turned_upright(client: httpx.Client) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    content = file_of(photo(128, 64), "JPEG", exif=turned)
    assert Image.open(io.BytesIO(edited(client, image=b64(content), steps=1))).size == (64, 128)


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rest


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"image": "@@@"}, "image", "base64"),
        ({"image": 5}, "image", "not one file"),
        ({"image": ["AA==", "AA=="]}, "image", "not one file"),
        ({"image": ""}, "image", "0 bytes"),
        ({"image": b64(b"hello world, this is text")}, "image", "text, not a picture"),
        ({"image": b64(PHOTO[: len(PHOTO) // 2])}, "image", "damaged"),
        ({"image": b64(bomb())}, "image", "decompression bomb"),
        ({"image": b64(PHOTO), "mask": b64(file_of(middle(64, 32)))}, "mask", "size or shape"),
        ({"image": b64(PHOTO), "mask": b64(file_of(np.zeros((128, 128), np.uint8)))}, "mask", "make white"),
        ({"image": b64(PHOTO), "strength": 0}, "strength", "more than 0"),
        ({"image": b64(PHOTO), "strength": 1.01}, "strength", "at most 1"),
        ({"image": b64(PHOTO), "expand": {"left": 63}}, "expand.left", "such as 64"),
        ({"image": b64(PHOTO), "expand": {"left": 128}, "width": 128}, "expand.left", "smaller margins"),
        ({"image": b64(PHOTO), "expand": {"top": 6400}}, "height", "256 x 256"),
        ({"mask": b64(MASK)}, "mask", "picture to change"),
        ({"strength": 0.5}, "strength", "picture to change"),
        ({"expand": {"left": 64}}, "expand", "picture to change"),
    ],
)
def test_bad_input_names_the_field_and_the_remedy(
    client: httpx.Client, change: dict[str, Any], field: str, words: str
) -> None:
    found = problem(client.post("/generate", json=APPLE | change), field)
    assert words in f"{found['problem']}; {found['remedy']}"
    assert len(found["value"] or "") <= 200


def test_not_a_number_is_no_strength(client: httpx.Client) -> None:
    body = json.dumps({"prompt": "a", "strength": float("nan"), "image": b64(PHOTO)})
    found = problem(client.post("/generate", content=body), "strength")
    assert found["problem"] == "not finite"


@pytest.mark.parametrize(
    ("content", "boundary", "words"),
    [
        (b"abc", "", "No boundary"),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na', "; boundary=x", "before its last boundary"),
    ],
)
def test_a_damaged_form_is_refused(client: httpx.Client, content: bytes, boundary: str, words: str) -> None:
    reply = client.post("/generate", content=content, headers={"content-type": f"multipart/form-data{boundary}"})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


def test_a_form_has_neither_a_field_twice_nor_hundreds(client: httpx.Client) -> None:
    twice = client.post("/generate", data={"prompt": ["a", "b"]}, files={"image": ("a.png", PHOTO)})
    assert problem(twice, "body")["code"] == "body_field_twice"
    two = [("image", ("a.png", PHOTO)), ("image[]", ("b.png", PHOTO))]
    assert problem(client.post("/generate", data={"prompt": "a"}, files=two), "image")["code"] == "not_one_file"
    many = client.post("/generate", data={f"f{i}": "1" for i in range(200)}, files={"image": ("a.png", PHOTO)})
    assert many.status_code == 400


def test_the_limits_are_those_of_pictures_and_of_the_rest(client: httpx.Client) -> None:
    limits = client.get("/v1/info").json()["limits"]
    size = limits["max_image_bytes"] + 1
    large = client.post("/generate", data={"prompt": "a"}, files={"image": ("a.png", bytes(size))})
    assert problem(large, "image")["code"] == "image_bytes_exceeded"
    body = limits["max_image_bytes"] * 4 // 3 + limits["max_body_bytes"] + 1
    assert client.post("/generate", content=bytes(body)).status_code == 413
    rest = client.post("/generate", json={"image": b64(PHOTO), "prompt": "x" * limits["max_body_bytes"]})
    assert rest.status_code == 413
    assert rest.json()["error"]["problems"][0]["code"] == "body_rest_too_large"
