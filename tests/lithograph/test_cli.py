"""``lithograph generate``, and pictures repeated from their recipe."""

import io
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from longcat.errors import RecipeError
from longcat.model.flavour import Flavour
from service.wire.limits import Limits
from service.wire.picture import ModelIdentity, Recipe, encode_picture, read_recipe
from service.wire.schema import GenerateRequest, ResolvedRequest
from tests.conftest import run_lithograph


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_without_the_standard_streams_that_its_parent_has_closed(closed: str) -> None:
    wrong = [sys.executable, "-m", "lithograph", "serve", "--require-adapter", "ink"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *wrong], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, "a usage error; 1 is that of a stack trace"
    assert "Traceback" not in done.stderr


def a_recipe(**changes: object) -> Recipe:
    request = ResolvedRequest(
        prompt="一只猫 'q' 😀", negative_prompt="", width=64, height=64, steps=3, guidance_scale=2.5, seed=4, num_images=1,
        cfg_renorm=True, rewrite_prompt=False, output_format="png",
    )  # fmt: skip
    identity = ModelIdentity(
        flavour="embedded",
        revision=None,
        hash="0" * 64,
        precision="no_change",
        text_encoder_precision="no_change",
        dtype="float32",
    )
    return Recipe(request=request.model_copy(update=changes), model=identity)


def test_a_served_picture_is_made_again_byte_for_byte(client: httpx.Client, tmp_path: Path) -> None:
    # The second of two pictures, so that the recipe also has to undo the batch.
    body = {
        "prompt": "一个红苹果，蓝色背景",
        "seed": 11,
        "steps": 3,
        "num_images": 2,
        "negative_prompt": "绿色",
        "cfg_renorm": False,
    }
    archive = zipfile.ZipFile(io.BytesIO(client.post("/generate", json=body).content))
    (tmp_path / "served.png").write_bytes(archive.read("12.png"))
    finished = run_lithograph("generate", "--recipe", "served.png", "-o", "again.png", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "served.png").read_bytes()


def test_generate_draws_without_a_server_and_its_picture_can_be_repeated(tmp_path: Path) -> None:
    finished = run_lithograph(
        "generate", "一只猫", "-o", "cat.png", "--seed", "5", "--steps", "2", "--num-images", "2", "--dtype", "bfloat16",
        "--precision", "int8-torchao", cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["cat-0.png seed 5", "cat-1.png seed 6"]
    assert "Warning" not in finished.stderr
    recipe = read_recipe(tmp_path / "cat-1.png")
    assert (recipe.request.seed, recipe.request.num_images) == (6, 1)
    assert (recipe.model.precision, recipe.model.dtype) == ("int8-torchao", "bfloat16")
    again = run_lithograph("generate", "--recipe", "cat-1.png", "-o", "again.png", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "cat-1.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "give a PROMPT, or --recipe PICTURE"),
        (["generate", "cat", "--steps", "0"], "error: steps = 0: too small; give at least 1"),
        (["generate", "cat", "--width", "100"], "give a multiple of 64"),
        (["generate", "cat", "-o", "cat.gif"], "end the name in .png"),
        (["generate", "cat", "-o", "no/such/cat.png"], "there is no directory no/such; create it first"),
        (["generate", "--recipe", "foreign.png", "-o", "again.jpg"], "end the name likewise"),
        (
            ["generate", "--recipe", "foreign.png", "--dtype", "bfloat16"],
            "give no prompt and no request options with it",
        ),
        (["generate", "--recipe", "elsewhere.png"], "if you trust that model, name it with --flavour"),
        (["generate", "--recipe", "broken.png"], "steps = 0: too small; give at least 1"),
        (["generate", "cat", "--flavour", "nope"], "error: flavour = nope: "),
        (["generate", "cat", "--precision", "int4-torchao"], "use int4-quanto"),
        (["generate", "cat", "--device", "cuda:9"], "error: device = cuda:9: "),
        (["generate", "cat", "--offload", "model"], "use none"),
        (["generate", "--recipe", "plain.png"], "carries no recipe"),
        (["generate", "--recipe", "foreign.png"], "name that model with --flavour"),
        (["generate", "cat", "--recipe", "plain.png"], "give no prompt and no request options with it"),
        (["serve", "--port", "80"], "Error: --port = 80: too small; give at least 1024"),
        (["serve", "--max-steps", "0"], "--max-steps = 0: too small; give at least 1"),
        (
            ["serve", "--max-pixels", "4096"],
            "error: --max-pixels = 4096: less than the model's default size; give at least ",
        ),
        (["serve", "--precision", "int9"], "--precision = int9: not a known precision; use one of no_change"),
        (["serve", "--flavour", "/nowhere/at/all"], "flavour = /nowhere/at/all: "),
    ],
)
def test_an_error_is_one_line_with_its_remedy(
    tmp_path: Path, flavour: Flavour, arguments: list[str], message: str
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    black = np.zeros((64, 64, 3), np.uint8)
    elsewhere = a_recipe().model.model_copy(update={"flavour": "someone/else"})
    here = a_recipe().model.model_copy(update={"hash": flavour.hash})
    recipes = {
        "foreign.png": a_recipe(),
        "elsewhere.png": a_recipe().model_copy(update={"model": elsewhere}),
        "broken.png": a_recipe(steps=0).model_copy(update={"model": here}),
    }
    for name, recipe in recipes.items():
        (tmp_path / name).write_bytes(encode_picture(black, recipe))
    finished = run_lithograph(*arguments, cwd=tmp_path)
    assert finished.returncode != 0
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "picture.png").exists()


def test_help_lists_the_commands(tmp_path: Path) -> None:
    top = run_lithograph("--help", cwd=tmp_path).stdout
    assert "serve" in top
    assert "generate" in top
    assert "--precision" in run_lithograph("serve", "--help", cwd=tmp_path).stdout
    assert "byte for byte" in run_lithograph("generate", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_encoding_is_repeatable_and_png_is_lossless(output_format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    recipe = a_recipe(output_format=output_format)
    first, second = encode_picture(pixels, recipe), encode_picture(pixels, recipe)
    assert first == second
    if output_format == "png":
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(first))), pixels)


def test_recipes_survive_the_file_and_broken_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_picture(np.zeros((64, 64, 3), np.uint8), a_recipe()))
    assert read_recipe(path) == a_recipe()
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("lithograph", a_recipe().model_dump_json().replace('"format":1', '"format":9'))
    Image.new("RGB", (8, 8)).save(tmp_path / "future.png", pnginfo=chunks)
    (tmp_path / "text.png").write_text("hello")
    bomb = bytearray(path.read_bytes())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bomb)
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:-40])
    broken = "cannot be read as a picture"
    for name, message in (
        ("bomb.png", broken),
        ("cut.png", broken),
        ("future.png", "this version cannot read, at format"),
        ("text.png", "is not a picture"),
    ):
        with pytest.raises(RecipeError, match=message):
            read_recipe(tmp_path / name)


def test_limits_of_the_model_alone_are_generous(flavour: Flavour) -> None:
    limits = Limits.of_model(flavour)
    request = GenerateRequest(prompt="cat", steps=5000, num_images=500, seed=1)
    assert limits.resolve(request, lambda text: [0] * len(text)).steps == 5000
