"""Edit, over HTTP: pictures that are opened, masks, results with their source beside them, and what is refused."""

import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from longcat.sampling.encoding.source import FEATHER_PX
from studio.app import create_app
from studio.config import StudioConfig
from tests.conftest import RunningServer, serve
from tests.edit_model import picture
from tests.studio.context import studio_of
from tests.studio.generate.test_pages import HERE, HTMX, IN_GALLERY, drawn, picture_of, pictures, wait_for

FORM = {"prompt": "a pear", "steps": "2", "guidance_scale": "2", "seed": "5", "num_images": "1"}


@pytest.fixture(scope="module")
def visitor(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    yield from visiting(server, tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def at_editor(edit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A browser at a studio whose model edits."""
    with serve(tmp_path_factory.mktemp("edit-server"), "--flavour", str(edit_folder)) as running:
        yield from visiting(running, tmp_path_factory.mktemp("studio"))


def visiting(server: RunningServer, home: Path) -> Iterator[TestClient]:
    app = create_app(StudioConfig(home=home, service_url=server.url))
    with TestClient(app, base_url=HERE, follow_redirects=False) as client:
        wait_for(lambda: "pill-ready" in client.get("/service").text)
        yield client


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(visitor: TestClient, content: bytes, name: str = "mine.png", **headers: str) -> str:
    """Open a picture; the address of its editor."""
    reply = visitor.post("/edit", files={"picture": (name, content)}, data={"prompt": ""}, headers=headers)
    assert reply.status_code == 303, reply.text
    return str(reply.headers["location"])


def source(visitor: TestClient, address: str) -> Image.Image:
    return Image.open(io.BytesIO(visitor.get(f"{address.partition('?')[0]}/picture.png").content))


def edited(visitor: TestClient, address: str, mask: bytes | None = None, **fields: str) -> str:
    """Edit a picture and wait; the id of the result."""
    files = {} if mask is None else {"mask": ("mask.png", mask)}
    reply = visitor.post(address, data=FORM | fields, files=files, headers=HTMX)
    assert reply.status_code == 200, reply.text
    return drawn(visitor, reply.text)[0]


def content_of(visitor: TestClient, picture_id: str) -> bytes:
    return visitor.get(f"/gallery/{picture_id}/picture.png").content


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def a_mask(size: tuple[int, int] = (128, 128)) -> Image.Image:
    """A disc in the middle."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse((40, 40, 80, 80), fill=255)
    return mask


def turned() -> bytes:
    """A JPEG that lies on its side by its EXIF orientation: red above, blue below once it is upright."""
    lying = Image.new("RGB", (60, 40), "red")
    lying.paste("blue", (30, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(lying, "JPEG", exif=exif, quality=95)


def test_a_plain_png_stays_byte_for_byte_and_others_are_made_plain(visitor: TestClient) -> None:
    plain = file_of(picture(100, 70))
    address = opened(visitor, plain)
    assert visitor.get(f"{address}/picture.png").content == plain
    upright = source(visitor, opened(visitor, turned()))
    assert upright.size == (40, 60)
    top, bottom = upright.getpixel((20, 5)), upright.getpixel((20, 55))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > bottom[0]
    assert upright.info.keys().isdisjoint({"exif", "icc_profile"})
    cyan = source(visitor, opened(visitor, file_of(Image.new("CMYK", (64, 64), (255, 0, 0, 0)), "JPEG")))
    assert cyan.mode == "RGB"
    grey = Image.fromarray(np.full((64, 64), 32896, np.uint16))
    assert source(visitor, opened(visitor, file_of(grey))).getpixel((0, 0)) == (128, 128, 128)


def test_what_a_person_may_not_expect_is_said_in_both_languages(visitor: TestClient) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    moving = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    clear = file_of(Image.new("RGBA", (64, 64), (0, 0, 255, 0)))
    huge = file_of(Image.new("RGB", (3000, 2000)))
    for content, english, chinese in (
        (moving, "first frame", "第一帧"), (clear, "transparent is white", "变为白色"), (huge, "scaled down", "已缩小"),
    ):  # fmt: skip
        address = opened(visitor, content)
        assert english in visitor.get(address, headers={"Accept-Language": "en"}).text
        assert chinese in visitor.get(address, headers={"Accept-Language": "zh"}).text
    assert source(visitor, opened(visitor, clear)).getpixel((0, 0)) == (255, 255, 255)
    small = source(visitor, opened(visitor, huge))
    assert 2048 * 2040 < small.width * small.height <= 2048 * 2048


@pytest.mark.parametrize(
    ("content", "english", "chinese"),
    [
        (b"", "no file; choose a picture", "请选择一张图片"),
        (b"not a picture", "text, not a picture", "文本"),
        (file_of(picture())[:-2000], "damaged or cut short", "损坏"),
        (b"x" * (16 * 2**20 + 1), "16.8 MB", "16.8 MB"),
        (file_of(Image.new("1", (8000, 5000))), "decompression bomb", "解压炸弹"),
    ],
    ids=["empty", "text", "cut", "large", "bomb"],
)
def test_a_file_that_cannot_be_edited_is_refused_in_words(
    visitor: TestClient, content: bytes, english: str, chinese: str
) -> None:
    for language, words in (("en", english), ("zh", chinese)):
        headers = HTMX | {"Accept-Language": language}
        reply = visitor.post("/edit", files={"picture": ("mine.png", content)}, headers=headers)
        assert reply.status_code == 422, reply.text
        assert words in reply.text
        assert 'data-problem="picture"' in reply.text


def test_pixels_outside_the_mask_stay_and_again_gives_the_same_file(visitor: TestClient) -> None:
    before = file_of(picture(128, 128))
    address = opened(visitor, before)
    mask = file_of(a_mask())
    result = edited(visitor, address, mask)
    reach = np.asarray(a_mask().resize((128, 128)))
    near = np.zeros((128, 128), bool)
    rows, columns = np.nonzero(reach)
    near[
        rows.min() - FEATHER_PX : rows.max() + FEATHER_PX + 1,
        columns.min() - FEATHER_PX : columns.max() + FEATHER_PX + 1,
    ] = True
    difference = np.abs(pixels(content_of(visitor, result)) - pixels(before)).sum(2)
    assert not difference[~near].any()
    assert difference[50:70, 50:70].mean() > 5
    again = drawn(visitor, visitor.post(f"/gallery/{result}/again", headers=IN_GALLERY).text)[0]
    assert again != result
    assert content_of(visitor, again) == content_of(visitor, result)
    edit = picture_of(visitor, again).recipe.edit
    assert edit is not None
    assert edit.mask is not None
    assert (edit.image, edit.strength) == (address.rpartition("/")[2], 1.0)
    assert visitor.get(f"/gallery/{again}/before.png").content == before
    viewer = visitor.get(f"/gallery/{again}", headers=HTMX).text
    assert "before.png" in viewer
    assert "before.png" not in visitor.get(f"/gallery/{again}?alone=true", headers=HTMX).text
    for link in (f"/generate?like={again}", f"/generate/composer?like={again}"):
        assert visitor.get(link).headers["location"] == f"{address}?like={again}"
    filled = visitor.get(f"{address}?like={again}").text
    assert f'data-mask="/edit/{edit.mask}/picture.png"' in filled
    assert ">a pear</textarea>" in filled


def test_the_source_goes_with_the_last_picture_that_was_made_from_it(visitor: TestClient) -> None:
    gallery = studio_of(visitor).gallery
    address = opened(visitor, file_of(picture(64, 64, seed=3)))
    digest = address.rpartition("/")[2]
    folder = studio_of(visitor).config.home / "gallery"

    def copies() -> list[Path]:
        return list(folder.rglob(f"{digest}.png"))

    first = edited(visitor, address)
    second = drawn(visitor, visitor.post(f"/gallery/{first}/again", headers=IN_GALLERY).text)[0]
    assert len(copies()) == 3
    assert copies()[0].stat().st_nlink == 3  # one file on the disk
    os.utime(copies()[0], (0, 0))
    opened(visitor, file_of(picture(64, 64, seed=4)))  # removes what was not opened for a week
    assert len(copies()) == 2
    assert visitor.get(address).status_code == 404
    assert visitor.get(f"{address}?like={second}").status_code == 200  # taken back
    again = drawn(visitor, visitor.post(f"/gallery/{second}/again", headers=IN_GALLERY).text)[0]
    assert content_of(visitor, again) == content_of(visitor, first)
    for made in (first, second, again):
        visitor.delete(f"/gallery/{made}", headers=IN_GALLERY)
    os.utime(copies()[0], (0, 0))
    gallery.sources.add(b"another")
    assert not copies()


def test_a_picture_is_extended_and_a_mask_of_another_size_or_a_margin_off_the_grid_refused(visitor: TestClient) -> None:
    address = opened(visitor, file_of(picture(128, 128, seed=7)))
    result = edited(visitor, address, left="64", strength="1")
    recipe = picture_of(visitor, result).recipe
    assert (recipe.width, recipe.height) == (192, 128)
    assert recipe.edit is not None
    assert recipe.edit.expand is not None
    assert recipe.edit.expand.left == 64
    viewer = visitor.get(f"/gallery/{result}", headers=HTMX | {"Accept-Language": "en"}).text
    assert "Left 64 px" in viewer
    assert "what was added" in viewer
    count = len(pictures(visitor))
    for files, fields, words in (
        ({"mask": ("mask.png", file_of(a_mask((100, 100))))}, {}, "has 100 × 100 px, and the picture 128 × 128"),
        ({"mask": ("mask.png", b"none")}, {}, "text, not a picture"),
        ({}, {"left": "10"}, "multiple of 64"),
        ({}, {"strength": "0"}, "strength"),
    ):
        reply = visitor.post(address, data=FORM | fields, files=files or None, headers=HTMX | {"Accept-Language": "en"})
        assert reply.status_code == 422, reply.text
        assert words.lower() in reply.text.lower()
    assert len(pictures(visitor)) == count
    empty = file_of(Image.new("L", (128, 128)))
    unmasked = picture_of(visitor, edited(visitor, address, empty, strength="0.5")).recipe.edit
    assert unmasked is not None
    assert (unmasked.mask, unmasked.strength) == (None, 0.5)


@pytest.mark.parametrize(
    "path", ["/edit/x", "/edit/" + "0" * 64, "/edit/..%2f..%2fetc", "/edit/" + "0" * 64 + "/picture.png"]
)
def test_a_source_that_is_not_there_is_not_found(visitor: TestClient, path: str) -> None:
    assert visitor.get(path).status_code == 404


@pytest.mark.heavy
def test_a_model_that_edits_asks_for_an_instruction_and_drawing_with_it_leads_to_the_editor(
    at_editor: TestClient,
) -> None:
    led = at_editor.post("/generate", data=FORM | {"width": "128", "height": "128"}, headers=HTMX)
    assert led.headers["hx-redirect"] == "/edit?prompt=a+pear"
    start = at_editor.get("/edit?prompt=a+pear", headers={"Accept-Language": "en"}).text
    assert "Your words come along: “a pear”" in start
    files = {"picture": ("a.png", file_of(picture(300, 100)))}
    address = at_editor.post("/edit", files=files, data={"prompt": "a pear"}).headers["location"]
    page = at_editor.get(address, headers={"Accept-Language": "en"}).text
    assert "What should change" in page
    assert ">a pear</textarea>" in page
    assert not re.search(r'name="strength"', page)
    assert re.search(r'<option value="false" selected>', page)  # the model's own cfg_renorm
    result = edited(at_editor, address.partition("?")[0], strength="0.5")
    recipe = picture_of(at_editor, result).recipe
    assert (recipe.width, recipe.height, recipe.cfg_renorm) == (224, 80, False)
    assert recipe.edit is not None
    assert recipe.edit.strength is None
    again = drawn(at_editor, at_editor.post(f"/gallery/{result}/again", headers=IN_GALLERY).text)[0]
    assert content_of(at_editor, again) == content_of(at_editor, result)
    oblong = opened(at_editor, file_of(Image.new("RGB", (900, 100))))
    assert "at most 8 times" in at_editor.get(oblong, headers={"Accept-Language": "en"}).text


@pytest.mark.heavy
@pytest.mark.parametrize("send", [
    lambda client, made: client.post(f"/gallery/{made}/again", headers=IN_GALLERY),
    lambda client, made: client.post(f"/gallery/{made}/vary", headers=IN_GALLERY),
    lambda client, _: client.post("/grids", data=FORM | {"grid_seeds": "1,2"}, headers=HTMX),
], ids=["again", "vary", "grid"])  # fmt: skip
def test_a_picture_of_words_alone_is_refused_by_a_model_that_edits(
    at_editor: TestClient, visitor: TestClient, send: Callable[[TestClient, str], Any]
) -> None:
    words = visitor.post("/generate", data=FORM | {"width": "64", "height": "64"}, headers=HTMX)
    made = drawn(visitor, words.text)[0]
    gallery = studio_of(at_editor).gallery
    gallery.add(content_of(visitor, made), picture_of(visitor, made))
    reply = send(at_editor, made)
    assert reply.status_code == 422
    assert "draws none from words alone" in reply.text
    gallery.remove(made)
