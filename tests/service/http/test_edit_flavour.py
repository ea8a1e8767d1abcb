"""A server of a model that edits, of random weights: requests with and without a picture."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import RunningServer, run_lithograph, serve
from tests.edit_model import picture
from tests.service.http.replies import metric, pixels, problem
from tests.service.http.test_editing import b64, file_of, recipe_of

PHOTO = file_of(picture(300, 100))
EDIT = {"prompt": "make it blue", "seed": 1, "steps": 2, "image": b64(PHOTO)}


@pytest.fixture(scope="module")
def edit_server(edit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serve(tmp_path_factory.mktemp("edit-server"), "--flavour", str(edit_folder)) as running:
        yield running


@pytest.fixture(scope="module")
def editor(edit_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=edit_server.url, timeout=120) as session:
        yield session


def test_a_picture_is_edited_at_its_own_ratio_by_the_models_defaults(editor: httpx.Client) -> None:
    before = metric(editor, "lithograph_pictures_by_kind_total", kind="edit")
    reply = editor.post("/generate", json=EDIT)
    assert reply.status_code == 200, reply.text
    assert pixels(reply.content).shape == (80, 224, 3)  # about 128 x 128 px, sides in multiples of 16
    request = recipe_of(reply.content).request
    assert (request.guidance_scale, request.cfg_renorm) == (4.5, False)
    assert request.edit is not None
    assert (request.edit.is_reference, request.edit.strength) == (True, 1.0)
    assert metric(editor, "lithograph_pictures_by_kind_total", kind="edit") == before + 1
    assert editor.get("/v1/info").json()["edits"] is True
    other = editor.post("/generate", json=EDIT | {"image": b64(file_of(picture(300, 100, seed=1)))})
    assert np.abs(pixels(other.content).astype(int) - pixels(reply.content)).mean() > 1


def test_a_request_names_another_size_and_the_picture_is_cut_to_it(editor: httpx.Client) -> None:
    reply = editor.post("/generate", json=EDIT | {"width": 128, "height": 64})
    assert pixels(reply.content).shape == (64, 128, 3)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "a cat"}),
        ("/v1/images/generations", {"prompt": "a cat"}),
    ],
)
def test_a_request_without_a_picture_is_refused(editor: httpx.Client, path: str, body: dict[str, str]) -> None:
    reply = editor.post(path, json=body)
    assert reply.status_code in (400, 422)
    assert "this model edits a picture, and there is none" in reply.text


def test_two_pictures_and_oblong_ones_are_refused(editor: httpx.Client) -> None:
    files = [("image[]", ("a.png", PHOTO)), ("image[]", ("b.png", PHOTO))]
    two = editor.post("/v1/images/edits", data={"prompt": "make it blue"}, files=files)
    assert two.status_code == 400, two.text
    assert "this model takes 1 picture" in two.text
    oblong = editor.post("/generate", json=EDIT | {"image": b64(file_of(Image.new("RGB", (900, 100))))})
    assert problem(oblong, "image")["code"] == "picture_too_oblong"


@pytest.mark.heavy
def test_openai_and_the_command_make_the_same_edit_and_its_recipe_repeats_it(
    editor: httpx.Client, edit_folder: Path, tmp_path: Path
) -> None:
    content = editor.post("/generate", json=EDIT).content
    fields = {"prompt": EDIT["prompt"], "seed": "1", "steps": "2"}
    reply = editor.post("/v1/images/edits", data=fields, files={"image": ("a.png", PHOTO)})
    assert reply.status_code == 200, reply.text
    assert reply.json()["data"][0]["b64_json"] == b64(content)
    (tmp_path / "photo.png").write_bytes(PHOTO)
    (tmp_path / "made.png").write_bytes(content)
    options = ("--flavour", str(edit_folder), "-o")
    made = run_lithograph(
        "edit", "photo.png", "make it blue", "--seed", "1", "--steps", "2", *options, "local.png", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    repeated = run_lithograph(
        "generate", "--recipe", "made.png", "--image", "photo.png", *options, "again.png", cwd=tmp_path
    )
    assert repeated.returncode == 0, repeated.stderr
    assert (tmp_path / "again.png").read_bytes() == content
    assert (tmp_path / "local.png").read_bytes() == content
