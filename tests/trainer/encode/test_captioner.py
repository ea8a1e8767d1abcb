"""Captions by a model's own text encoder: a small random Qwen2.5-VL in the layout of LongCat-Image's."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from longcat.model.flavour import EMBEDDED_FOLDER, resolve
from trainer.commands.dataset import dataset
from trainer.encode.captioner import LocalCaptioner


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "seeing"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    settings = json.loads((folder / "lithograph.json").read_text())
    (folder / "lithograph.json").write_text(json.dumps(settings | {"rewrites_prompts": True}))
    config = Qwen2_5_VLConfig.from_pretrained(EMBEDDED_FOLDER / "text_encoder")
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = False
    torch.manual_seed(3)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    model.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (120, 90), colour).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


def caption(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(dataset, ["caption", str(folder), *options], catch_exceptions=False)


def test_it_writes_what_the_whole_model_writes_about_the_picture(
    model_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = LocalCaptioner(resolve(str(model_folder)), device="cpu", max_tokens=8)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_folder / "text_encoder").eval()
    seen: list[dict[str, torch.Tensor]] = []
    generate = captioner._model.generate

    def ended(**inputs: torch.Tensor) -> torch.Tensor:
        seen.append(inputs)
        result: torch.Tensor = generate(**inputs)
        result[0, -1] = captioner._tokenizer.eos_token_id  # a random model ends none
        return result

    monkeypatch.setattr(captioner._model, "generate", ended)
    texts = []
    for name in ("a", "b"):
        with Image.open(pictures / f"{name}.png") as picture:
            texts.append(captioner.describe(picture, "What is it?"))
        inputs = seen[-1]
        ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
        assert (ids == model.config.image_token_id).sum() == grid.prod() // 4
        plain = model.generate(**inputs)[0, ids.shape[1] : -1]
        assert texts[-1] == captioner._tokenizer.decode(plain, skip_special_tokens=True)
    assert texts[0] != texts[1]  # it sees the picture
    question = captioner._tokenizer.decode(seen[0]["input_ids"][0])
    assert question.startswith("<|im_start|>user\n<|vision_start|><|image_pad|>")
    assert "<|vision_end|>What is it?<|im_end|>" in question


def test_a_caption_that_does_not_end_is_refused_and_written_nowhere(model_folder: Path, pictures: Path) -> None:
    done = caption(pictures, "--flavour", str(model_folder), "--device", "cpu", "--language", "en", "--max-tokens", "4")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (65, "0 captioned, 0 left as they are, 2 failed")
    assert "raise --max-tokens" in done.stderr
    assert not list(pictures.glob("*.txt"))


def test_the_embedded_text_encoder_is_refused_before_it_is_loaded(pictures: Path) -> None:
    done = caption(pictures, "--flavour", "embedded")
    assert done.exit_code == 78
    assert "cannot describe pictures" in done.stderr
    assert "--endpoint" in done.stderr


@pytest.mark.parametrize(
    "options", [(), ("--endpoint", "http://127.0.0.1:9/v1"), ("--flavour", "final", "--model", "vl")]
)
def test_an_unclear_choice_is_refused(pictures: Path, options: tuple[str, ...]) -> None:
    done = caption(pictures, *options)
    assert done.exit_code == 78
    assert "--flavour final" in done.stderr
