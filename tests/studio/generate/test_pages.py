"""Generate, over HTTP: a form to a generation to the gallery, on the real service; what is refused, and what is kept."""

import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from lithograph.client.errors import RequestError
from service.wire.editing.fields import ResolvedEdit
from service.wire.picture import encode_picture
from studio.app import create_app
from studio.config import StudioConfig
from studio.generate.gallery import Gallery, GalleryPicture, new_id
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import PictureRecipe, ScaledAdapter
from tests.conftest import RunningServer
from tests.lithograph.test_cli import a_recipe
from tests.studio.context import studio_of

HERE = "http://127.0.0.1:8001"
HTMX = {"HX-Request": "true"}
IN_GALLERY = HTMX | {"HX-Current-URL": f"{HERE}/generate"}
FORM = {
    "prompt": "a red apple",
    "width": "128",
    "height": "128",
    "steps": "2",
    "guidance_scale": "2",
    "num_images": "1",
}
WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def visitor(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A browser at a studio that uses a service which runs already."""
    home = tmp_path_factory.mktemp("studio")
    with TestClient(create_app(StudioConfig(home=home, service_url=server.url)), base_url=HERE) as client:
        wait_for(lambda: "pill-ready" in client.get("/service").text)
        yield client


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def drawn(visitor: TestClient, reply_text: str) -> list[str]:
    """Wait for a generation; the ids of the pictures that the gallery has more."""
    generation = re.findall(r'id="generation-(\w+)"', reply_text)[0]
    wait_for(lambda: generation not in visitor.get("/generate").text)
    return pictures(visitor)


def pictures(visitor: TestClient) -> list[str]:
    return re.findall(r'<li class="tile" id="picture-([\w-]+)"', visitor.get("/generate").text)


def picture_of(studio: TestClient, picture_id: str) -> GalleryPicture:
    return studio_of(studio).gallery.get(picture_id)


def test_a_form_becomes_pictures_with_their_recipe(visitor: TestClient) -> None:
    reply = visitor.post("/generate", data=FORM | {"seed": "7", "num_images": "2"}, headers=HTMX)
    first, second = drawn(visitor, reply.text)[:2]
    kept = [picture_of(visitor, picture) for picture in (first, second)]
    assert [picture.recipe.seed for picture in kept] == [7, 8]
    assert kept[0].recipe == PictureRecipe(
        prompt="a red apple", width=128, height=128, steps=2, guidance_scale=2.0, seed=7, num_images=1, cfg_renorm=True
    )
    picture = visitor.get(f"/gallery/{first}/picture.png")
    assert picture.headers["content-type"] == "image/png"
    assert "a-red-apple-7.png" in picture.headers["content-disposition"]
    assert visitor.get(f"/gallery/{first}/thumbnail.webp").headers["content-type"] == "image/webp"
    page = visitor.get(f"/gallery/{first}", headers=HTMX).text
    assert "embedded" in page
    assert ">7<" in page


def test_again_gives_the_same_picture_and_vary_gives_others(visitor: TestClient) -> None:
    before = drawn(visitor, visitor.post("/generate", data=FORM | {"seed": "3"}, headers=HTMX).text)
    again = drawn(visitor, visitor.post(f"/gallery/{before[0]}/again", headers=IN_GALLERY).text)
    assert len(again) == len(before) + 1
    same = [visitor.get(f"/gallery/{picture}/picture.png").content for picture in (before[0], again[0])]
    assert same[0] == same[1]
    varied = drawn(visitor, visitor.post(f"/gallery/{again[0]}/vary", headers=IN_GALLERY).text)
    assert len(varied) == len(again) + 4
    seeds = {picture_of(visitor, picture).recipe.seed for picture in varied[:4]}
    assert len(seeds) == 4
    assert 3 not in seeds


def test_a_recipe_fills_the_form(visitor: TestClient) -> None:
    recipe = FORM | {"prompt": "一只猫", "seed": "41", "width": "192", "negative_prompt": "blue"}
    newest = drawn(visitor, visitor.post("/generate", data=recipe, headers=HTMX).text)[0]
    page = visitor.get(f"/generate?like={newest}").text
    assert ">一只猫</textarea>" in page
    assert ">blue</textarea>" in page
    assert 'value="41"' in page
    assert re.search(r'id="width"[^>]*value="192"', page)


def test_the_form_has_the_limits_and_defaults_of_the_model(visitor: TestClient) -> None:
    page = visitor.get("/generate").text
    assert 'data-width="128" data-height="128" aria-pressed="true"' in page
    assert re.findall(r'data-width="(\d+)" data-height="(\d+)"', page) == [("128", "128")]  # others fall apart
    assert "This model was trained for these sizes" in page
    assert "1152" not in page
    assert re.search(r'id="steps"[^>]*max="100"[^>]*value="16"', page)


def test_a_page_shows_the_settings_of_a_model_that_is_known_while_the_page_is_made(
    visitor: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = TestClient(create_app(StudioConfig(home=tmp_path)), base_url=HERE)
    studio, info = studio_of(later), studio_of(visitor).service.info
    read = studio.gallery.page

    def read_while_the_service_answers(**arguments: Any) -> list[GalleryPicture]:
        studio.service.info = info
        return read(**arguments)

    assert later.get("/generate/controls").status_code == 204
    settings = PictureRecipe(seed=41, steps=7).settings
    controls = visitor.get("/generate/controls", params={"settings": json.dumps(settings)}).text
    assert re.search(r'id="steps"[^>]*value="7"', controls)
    assert re.search(r'id="seed"[^>]*value="41"', controls)
    assert 'id="steps"' not in later.get("/generate").text
    monkeypatch.setattr(studio.gallery, "page", read_while_the_service_answers)
    assert 'id="steps"' in later.get("/generate").text


@pytest.mark.parametrize(
    ("wrong", "field", "remedy"),
    [
        ({"prompt": "  "}, "prompt", "missing; add it"),
        ({"width": "100"}, "width", "multiple of 64"),
        ({"width": "1088"}, "width", "give at most 1024"),
        ({"steps": "0"}, "steps", "give at least 1"),
        ({"steps": "many"}, "steps", "many: not a whole number"),
        ({"guidance_scale": "nan"}, "guidance_scale", "give a finite number"),
        ({"seed": "-1"}, "seed", "give at least 0"),
        ({"num_images": "99"}, "num_images", "give at most 8"),
        ({"width": "960", "height": "960"}, "width", "give at most 256 × 256"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(
    visitor: TestClient, wrong: dict[str, str], field: str, remedy: str
) -> None:
    reply = visitor.post("/generate", data=FORM | wrong, headers=HTMX)
    assert reply.status_code == 422
    assert f'data-problem="{field}"' in reply.text
    assert remedy in reply.text


def test_a_rejection_of_the_service_is_an_event_of_the_stream(visitor: TestClient) -> None:
    reply = visitor.post("/generate", data=FORM | {"prompt": "word " * 200}, headers=HTMX)
    generation = re.findall(r'id="generation-(\w+)"', reply.text)[0]
    wait_for(lambda: generation not in visitor.get("/generate").text)
    generations = studio_of(visitor).generations
    error = generations.get(generation).error
    assert isinstance(error, RequestError)
    assert "at most 32" in str(error)


def test_a_drawing_can_be_cancelled(visitor: TestClient) -> None:
    before = pictures(visitor)
    reply = visitor.post("/generate", data=FORM | {"steps": "100", "num_images": "8"}, headers=HTMX)
    generation = re.findall(r'id="generation-(\w+)"', reply.text)[0]
    assert visitor.delete(f"/generations/{generation}").status_code == 204
    wait_for(lambda: generation not in visitor.get("/generate").text)
    assert pictures(visitor) == before


def test_a_picture_that_is_deleted_is_gone(visitor: TestClient) -> None:
    newest, *older = drawn(visitor, visitor.post("/generate", data=FORM, headers=HTMX).text)
    viewer = visitor.get(f"/gallery/{newest}", headers=HTMX | {"HX-Current-URL": "http://["})
    assert viewer.status_code == 200  # no browser's page
    assert "HX-Refresh" not in visitor.delete(f"/gallery/{newest}", headers=IN_GALLERY).headers
    assert pictures(visitor) == older
    assert visitor.get(f"/gallery/{newest}").status_code == 404


@pytest.mark.parametrize("picture", ["nothing", "..%2f..", "20260101-000000000000-abcdef"])
def test_a_picture_that_is_not_there_is_404(visitor: TestClient, picture: str) -> None:
    for path in ("", "/picture.png", "/thumbnail.webp", "/compare"):
        assert visitor.get(f"/gallery/{picture}{path}").status_code == 404


def test_the_gallery_survives_a_restart_and_comes_in_pages(tmp_path: Path) -> None:
    png = tmp_path / "one.png"
    Image.new("RGB", (64, 64), "red").save(png)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for i in range(30):
        created = start + timedelta(minutes=i)
        recipe = PictureRecipe(prompt=f"picture {i}", width=64, height=64, steps=1, guidance_scale=1, seed=i)
        Gallery(tmp_path / "gallery").add(
            png.read_bytes(),
            GalleryPicture(
                id=new_id(created), created=created, recipe=recipe, flavour="embedded", model_hash="0" * 64, seconds=1,
                drawn_prompt=recipe.prompt,
            ),
        )  # fmt: skip
    (tmp_path / "gallery" / ".new-half").mkdir()
    (tmp_path / "gallery" / "20260101-000000000000-aaaaaa").mkdir()  # half of a picture, from elsewhere
    visitor = TestClient(create_app(StudioConfig(home=tmp_path)), base_url=HERE)
    page = visitor.get("/generate").text
    assert [f"picture {i}" in page for i in (29, 6, 5)] == [True, True, False]
    more = re.findall(r'hx-get="(/gallery\?before=[\w-]+)"', page)[0]
    older = visitor.get(more, headers=HTMX).text
    assert [f"picture {i}<" in older for i in (5, 0, 6)] == [True, True, False]
    assert 'hx-get="/gallery?before' not in older


def test_the_usual_sizes_are_ones_that_can_be_drawn() -> None:
    real = GenerationLimits()
    assert real.sizes()[:3] == [(1024, 1024), (896, 1152), (1152, 896)]
    small = GenerationLimits(width=128, height=128, max_pixels=128 * 128)
    assert small.sizes() == [(128, 128)]
    named = GenerationLimits(width=128, height=128, max_pixels=128 * 192, trained_sizes=((128, 192), (192, 192)))
    assert named.sizes() == [(128, 192)]


def test_the_recipe_of_an_edit_fills_the_form_with_a_note_of_what_it_lacks(visitor: TestClient) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    for edit, notes in ((ResolvedEdit(image_sha256="0" * 64, strength=0.6), 1), (None, 0)):
        files = {"picture": ("a.png", encode_picture(pixels, a_recipe(edit=edit)), "image/png")}
        reply = visitor.post("/generate/recipe", files=files, headers=HTMX)
        assert reply.status_code == 200
        assert reply.text.count("made from another picture") == notes


def test_a_recipe_has_its_adapters_in_the_clients_form() -> None:
    recipe = PictureRecipe(prompt="x", seed=1, adapters=(ScaledAdapter(name="ink@2", scale=0.5),))
    assert recipe.options() == {
        "negative_prompt": "", "seed": 1, "num_images": 1,
        "quality": "exact", "rewrite_prompt": False, "adapters": {"ink@2": 0.5},
    }  # fmt: skip
    assert recipe.without_adapters().adapters == ()
