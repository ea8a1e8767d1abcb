"""``lithograph edit``, the clients' edits, and pictures that are repeated from a recipe and its inputs."""

from pathlib import Path

import pytest

import lithograph
from tests.conftest import RunningServer, run_lithograph
from tests.service.http.test_editing import MASK, PHOTO, recipe_of

SETTINGS = ("--seed", "3", "--steps", "3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.png").write_bytes(PHOTO)
    (tmp_path / "mask.png").write_bytes(MASK)
    return tmp_path


@pytest.mark.heavy
def test_an_edit_is_repeated_byte_for_byte_from_its_recipe_and_its_inputs(server: RunningServer, folder: Path) -> None:
    options = ("--mask", "mask.png", "--strength", "0.8", "--expand", "64,0,0,0", *SETTINGS)
    made = run_lithograph("edit", "photo.png", "a red apple", *options, "-o", "edit.png", cwd=folder)
    assert made.returncode == 0, made.stderr
    edit = recipe_of((folder / "edit.png").read_bytes()).request.edit
    assert edit is not None
    assert edit.strength == 0.8
    repeat = ("generate", "--recipe", "edit.png", "--image", "photo.png", "--mask", "mask.png", "-o", "again.png")
    again = run_lithograph(*repeat, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (folder / "again.png").read_bytes() == (folder / "edit.png").read_bytes()
    with lithograph.Client(server.url) as client:
        result = client.generate(
            "a red apple", seed=3, steps=3, image=folder / "photo.png", mask=MASK, strength=0.8, expand={"left": 64}
        )
    assert result.images[0].content == (folder / "edit.png").read_bytes()
    at_server = run_lithograph(
        "edit", "photo.png", "a red apple", *options, "--server", server.url, "-o", "served.png", cwd=folder
    )
    assert at_server.returncode == 0, at_server.stderr
    assert (folder / "served.png").read_bytes() == (folder / "edit.png").read_bytes()


@pytest.mark.heavy
def test_a_recipe_is_refused_without_its_inputs(server: RunningServer, folder: Path) -> None:
    with lithograph.Client(server.url) as client:
        client.generate("a cat", steps=1, image=PHOTO).images[0].save(folder / "edit.png")
        client.generate("a cat", steps=1).images[0].save(folder / "plain.png")
    repeat = ("generate", "--recipe", "edit.png", "-o", "again.png")
    for arguments, words in (
        (repeat, "give that file with --image"),
        ((*repeat, "--image", "mask.png"), "give the file that the picture was made from"),
        ((*repeat, "--image", "photo.png", "--mask", "mask.png"), "the recipe of edit.png has no mask"),
        ((*repeat, "--image", "photo.png", "--strength", "0.5"), "no request options"),
        (("generate", "--recipe", "plain.png", "--image", "photo.png", "-o", "again.png"), "has no image"),
    ):
        refused = run_lithograph(*arguments, cwd=folder)
        assert refused.returncode != 0
        assert words in refused.stderr
    assert not (folder / "again.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.png", "a cat", "--strength", "0"], "give more than 0"),
        (["photo.png", "a cat", "--expand", "wide"], "left,top,right,bottom"),
        (["photo.png", "a cat", "--expand", "63"], "give a multiple of 64"),
        (["missing.png", "a cat"], "missing.png"),
        (["photo.png"], "PROMPT"),
    ],
)
def test_wrong_options_of_an_edit_are_named(folder: Path, arguments: list[str], words: str) -> None:
    refused = run_lithograph("edit", *arguments, cwd=folder)
    assert refused.returncode != 0
    assert words in refused.stderr
