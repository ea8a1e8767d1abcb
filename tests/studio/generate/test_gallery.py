"""A gallery of many pictures, over HTTP: searched, filtered, marked, downloaded and deleted, without a service."""

import io
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from studio.app import create_app
from studio.config import StudioConfig
from studio.generate.gallery import Gallery, GalleryPicture, new_id
from studio.generate.recipe import PictureRecipe, ScaledAdapter

HERE = "http://127.0.0.1:8001"
HTMX = {"HX-Request": "true"}
PROMPTS = ("a red apple", "一只猫", "a red boat", "A RED APPLE on a tree")


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """Four pictures, a minute apart; the second and the last were drawn with ``ink``, of different versions."""
    made = Gallery(tmp_path / "gallery")
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    for number, prompt in enumerate(PROMPTS):
        created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        adapters = (ScaledAdapter(name=f"ink@{number}"),) if number % 2 else ()
        recipe = PictureRecipe(prompt=prompt, width=64, height=64, steps=1, guidance_scale=1, seed=7, adapters=adapters)
        picture = GalleryPicture(
            id=new_id(created), created=created, recipe=recipe, flavour="embedded", model_hash="0" * 64, seconds=1,
            drawn_prompt=prompt,
        )  # fmt: skip
        made.add(buffer.getvalue(), picture)
    return made


@pytest.fixture
def visitor(gallery: Gallery, tmp_path: Path) -> TestClient:
    return TestClient(create_app(StudioConfig(home=tmp_path)), base_url=HERE, follow_redirects=False)


def ids(gallery: Gallery) -> list[str]:
    """Newest first."""
    return [picture.id for picture in gallery.page(before=None, count=99)]


def shown(visitor: TestClient, query: str) -> list[bool]:
    """For each of ``PROMPTS``, True if the gallery shows it."""
    text = visitor.get(f"/gallery?{query}", headers=HTMX).text
    return [f">{prompt}</p>" in text for prompt in PROMPTS]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("words=red+APPLE", [True, False, False, True]),
        ("words=猫", [False, True, False, False]),
        ("by=ink", [False, True, False, True]),
        ("by=ink&words=apple", [False, False, False, True]),
        ("words=nothing", [False, False, False, False]),
        ("", [True, True, True, True]),
    ],
)
def test_pictures_are_found_by_words_of_their_prompt_and_by_adapter(
    visitor: TestClient, query: str, expected: list[bool]
) -> None:
    assert shown(visitor, query) == expected
    page = visitor.get(f"/generate?{query}").text  # also as an address of its own
    assert [f">{prompt}</p>" in page for prompt in PROMPTS] == expected


def test_favourites_are_kept_and_filtered(visitor: TestClient, gallery: Gallery, tmp_path: Path) -> None:
    first = ids(gallery)[-1]
    reply = visitor.post(f"/gallery/{first}/favourite", headers=HTMX)
    assert reply.headers["hx-trigger"] == f'{{"favourite-changed": {{"picture": "{first}", "isFavourite": true}}}}'
    assert shown(visitor, "favourites=on") == [True, False, False, False]
    assert Gallery(tmp_path / "gallery").get(first).is_favourite
    everything = {"picture": ids(gallery)}
    visitor.post("/selection/favourite", data=everything, headers=HTMX)
    assert shown(visitor, "favourites=on") == [True, True, True, True]
    visitor.post("/selection/favourite", data=everything, headers=HTMX)
    assert shown(visitor, "favourites=on") == [False, False, False, False]


def test_selected_pictures_are_downloaded_as_a_zip_of_whole_files(visitor: TestClient, gallery: Gallery) -> None:
    newest, second, *_ = ids(gallery)
    selected = [newest, second, newest, "20260101-000000000000-aaaaaa", "../../etc/passwd"]
    reply = visitor.post("/selection/download", data={"picture": selected})
    assert reply.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["0001-A-RED-APPLE-on-a-tree-7.png", "0002-a-red-boat-7.png"]
        assert archive.read(archive.namelist()[0]) == gallery.file(newest, "picture.png").read_bytes()


def test_selected_pictures_are_deleted_and_the_filter_stays(visitor: TestClient, gallery: Gallery) -> None:
    newest, second, *rest = ids(gallery)
    reply = visitor.post("/selection/delete", data={"picture": [newest, second], "words": "apple"}, headers=HTMX)
    assert ids(gallery) == rest
    assert ">a red apple</p>" in reply.text
    assert "一只猫" not in reply.text
    assert visitor.post("/selection/delete", data={"picture": rest[0]}).headers["location"] == "/generate"
    assert ids(gallery) == rest[1:]


def test_an_empty_selection_is_an_error(visitor: TestClient) -> None:
    reply = visitor.post("/selection/delete", headers=HTMX)
    assert reply.status_code == 422
    assert "no picture is selected" in reply.text


def test_recent_prompts_are_listed_once_the_newest_first(gallery: Gallery) -> None:
    assert gallery.prompts(count=3) == ["A RED APPLE on a tree", "a red boat", "一只猫"]
    assert gallery.adapters() == ["ink"]
