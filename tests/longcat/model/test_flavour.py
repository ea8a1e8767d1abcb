import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LongCatImageEditPipeline
from safetensors.torch import load_file

from longcat.errors import FlavourError, HubError
from longcat.model.flavour import EMBEDDED_FOLDER, Flavour, resolve
from longcat.model.loading import load, load_text_encoder, load_transformer, load_vae
from longcat.model.precision import Precision
from longcat.model.published.models import ModelSettings, published_settings
from longcat.model.tokenizer import load_tokenizer
from tests.edit_model import write_edit_model


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
        ('{"max_tokens": 3}', "max_tokens = 3: unknown field"),
        ('{"default_steps": "many"}', "default_steps = many: not a whole number"),
        ("[]", "not a JSON object"),
        ("[", "not JSON"),
    ):
        (copy / "lithograph.json").write_text(content)
        with pytest.raises(FlavourError, match=where):
            resolve(str(copy))


class Planted:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("part", "name", "load"),
    [
        ("transformer", "diffusion_pytorch_model", load_transformer),
        ("text_encoder", "model", load_text_encoder),
        ("vae", "diffusion_pytorch_model", load_vae),
    ],
)
def test_a_models_weights_are_never_unpickled(
    tmp_path: Path, part: str, name: str, load: Callable[[Flavour, torch.dtype], object]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    flavour = resolve(str(folder))
    weights = folder / part / f"{name}.safetensors"
    pickled = folder / part / ("pytorch_model.bin" if part == "text_encoder" else f"{name}.bin")
    torch.save(load_file(weights) | {"planted": Planted(tmp_path / "trace")}, pickled)
    weights.unlink()
    with pytest.raises(FlavourError, match="are missing or damaged"):
        load(flavour, torch.float32)
    torch.save(load_file(EMBEDDED_FOLDER / part / weights.name), pickled)  # no payload: the format itself is rejected
    with pytest.raises(FlavourError, match="are missing or damaged"):
        load(flavour, torch.float32)
    assert not (tmp_path / "trace").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, copy)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FlavourError, match="are missing or damaged"):
        load(resolve(str(copy)), device="cpu")
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(FlavourError, match=r"tokenizer in .* is incomplete or damaged"):
        load_tokenizer(copy)


def test_what_modelscope_downloads_is_the_same_model(flavour: Flavour, tmp_path: Path) -> None:
    copy = tmp_path / "LongCat-Image"
    shutil.copytree(EMBEDDED_FOLDER, copy)
    for name in (".msc", ".mv", ".mdl", "configuration.json", "README.md", "._____temp/part"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
    found = resolve(str(copy))
    assert (found.hash, found.name, found.revision) == (flavour.hash, "LongCat-Image", None)


def test_what_is_no_model_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FlavourError, match=r"lacks model_index.json, scheduler.*save_pretrained"):
        resolve(str(tmp_path))
    for name in ("finale", "./missing", "../x", "/nowhere/at/all"):
        with pytest.raises(FlavourError, match="not a known model, a directory or a hub id"):
            resolve(name)
    with pytest.raises(FlavourError, match="did you mean 'embedded'"):
        resolve("embeded")
    with pytest.raises(FlavourError, match=r"a/b\.git cannot be downloaded"):
        resolve("a/b.git")
    with pytest.raises(
        HubError, match=r"LongCat-Image cannot be downloaded .*tried in .* a directory final, .*HF_HUB_OFFLINE"
    ):
        resolve("final")  # the tests run with HF_HUB_OFFLINE


def test_a_model_of_the_editing_pipeline_has_its_defaults_and_needs_an_image_processor(tmp_path: Path) -> None:
    """Source of the defaults: diffusers' ``LongCatImageEditPipeline.__call__``; of Turbo's: its model card."""
    signature = inspect.signature(LongCatImageEditPipeline.__call__).parameters
    edit, turbo = published_settings("edit"), published_settings("meituan-longcat/LongCat-Image-Edit-Turbo")
    defaults = [signature[name].default for name in ("num_inference_steps", "guidance_scale")]
    assert [edit.default_steps, edit.default_guidance_scale] == defaults == [50, 4.5]
    assert (turbo.default_steps, turbo.default_guidance_scale) == (8, 1.0)
    folder = write_edit_model(tmp_path / "mine", default_steps=12)
    found = resolve(str(folder))
    assert found.settings.edits
    assert (found.settings.default_steps, found.settings.default_guidance_scale) == (12, 4.5)
    assert (found.settings.default_cfg_renorm, found.settings.rewrites_prompts) == (False, False)
    assert found.settings.max_prompt_tokens == 32
    processor = folder / "text_processor" / "preprocessor_config.json"
    content = processor.read_text()
    processor.write_text(content.replace("3136", "6272"))
    assert resolve(str(folder)).hash != found.hash
    processor.rename(processor.with_name("processor_config.json"))
    assert resolve(str(folder)).settings.edits
    processor.with_name("processor_config.json").unlink()
    with pytest.raises(FlavourError, match=r"lacks text_processor/preprocessor_config\.json"):
        resolve(str(folder))


def test_the_vision_tower_is_loaded_where_pictures_are_edited_alone(tmp_path: Path, flavour: Flavour) -> None:
    editing = resolve(str(write_edit_model(tmp_path / "mine")))
    model = load(editing, device="cpu", text_encoder_precision=Precision.INT8_QUANTO)
    assert model.image_processor is not None
    tower = model.text_encoder.model.visual
    assert {type(module) for module in tower.modules() if "Linear" in type(module).__name__} == {torch.nn.Linear}
    plain = load(flavour, device="cpu")
    assert plain.image_processor is None
    assert not hasattr(plain.text_encoder.model, "visual")
