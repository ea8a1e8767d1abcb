import shutil
from pathlib import Path

import pytest

from longcat.errors import FlavourError, HubError
from longcat.flavour import EMBEDDED_FOLDER, Flavour, ModelSettings, resolve
from longcat.loading import load
from longcat.tokenizer import load_tokenizer


def test_the_embedded_model_ships_with_the_package(flavour: Flavour) -> None:
    assert flavour.folder == EMBEDDED_FOLDER
    assert flavour.settings.max_prompt_tokens == 32
    assert not flavour.settings.rewrites_prompts
    weights = sum(path.stat().st_size for path in EMBEDDED_FOLDER.rglob("*.safetensors"))
    assert weights <= 40 * 2**20
    assert (EMBEDDED_FOLDER / "README.md").exists()


def test_a_directory_is_a_flavour_and_any_changed_byte_changes_its_hash(flavour: Flavour, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, copy)
    assert (resolve(str(copy)).name, resolve(str(copy)).hash) == ("model", flavour.hash)
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve(str(copy)).hash != flavour.hash


def test_settings_default_to_longcat_image_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, copy)
    (copy / "lithograph.json").unlink()
    assert resolve(str(copy)).settings == ModelSettings()
    assert (ModelSettings().default_size_px, ModelSettings().default_steps) == (1024, 30)
    for content, where in (
        ('{"max_tokens": 3}', "wrong at max_tokens: Extra inputs are not permitted"),
        ('{"default_steps": "many"}', "wrong at default_steps"),
        ("[]", "wrong at the file as a whole"),
        ("[", "wrong at the file as a whole"),
    ):
        (copy / "lithograph.json").write_text(content)
        with pytest.raises(FlavourError, match=where):
            resolve(str(copy))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, copy)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FlavourError, match="are missing or damaged"):
        load(resolve(str(copy)), device="cpu")
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(FlavourError, match=r"tokenizer in .* is missing or damaged"):
        load_tokenizer(copy)


def test_what_is_no_model_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FlavourError, match=r"lacks model_index.json, scheduler.*save_pretrained"):
        resolve(str(tmp_path))
    for name in ("finale", "./missing", "../x", "/nowhere/at/all"):
        with pytest.raises(FlavourError, match="neither one of embedded, final, dev, a directory, nor a hub id"):
            resolve(name)
    with pytest.raises(FlavourError, match="did you mean 'embedded'"):
        resolve("embeded")
    with pytest.raises(FlavourError, match=r"cannot download a/b\.git"):
        resolve("a/b.git")
    with pytest.raises(HubError, match="cannot download meituan-longcat/LongCat-Image "):
        resolve("final")  # the tests run with HF_HUB_OFFLINE
