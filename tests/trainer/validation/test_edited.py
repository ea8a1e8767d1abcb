"""The pictures that validation edits, and the prompts and sizes of their edits."""

import json
from pathlib import Path

import pytest
import torch

from longcat.errors import ConfigError
from tests.edit_model import picture
from tests.trainer.pairs import write_pairs
from trainer.config.options import TrainConfig
from trainer.config.reading.file import make_config
from trainer.config.settings import select
from trainer.data.sample import Sample
from trainer.data.scan import take_inventory
from trainer.encode.preparation import Encoders
from trainer.model.base import prepare_model
from trainer.record.prompts_file import ChangedPrompts, write_changed_prompts
from trainer.validation.changed_prompts import with_changes
from trainer.validation.prompts import PromptSettings, ValidationPrompt, validation_prompts

Run = tuple[TrainConfig, Encoders, tuple[Sample, ...]]


@pytest.fixture(scope="module")
def run(edit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("edited")
    given = {
        "model_flavour": str(edit_folder),
        "data_backend_config": write_pairs(folder),
        "output_dir": str(folder / "out"),
    }
    made, _, problems = make_config(given | {"device": "cpu", "eval_share": 0.2})
    assert made is not None, problems
    config, encoders = prepare_model(made, torch.device("cpu"))
    inventory = take_inventory(config, lambda: encoders.flavour)
    assert inventory.held_out
    return config, encoders, inventory.shown_in_validation


def prompts(run: Run, **changes: object) -> tuple[ValidationPrompt, ...]:
    config, encoders, samples = run
    settings = select(TrainConfig.model_validate(config.model_dump() | changes), PromptSettings)
    return validation_prompts(with_changes(settings, config.output_dir), encoders, samples)


def shown(made: tuple[ValidationPrompt, ...]) -> list[tuple[str, str]]:
    return [(prompt.prompt, prompt.reference.file.key) for prompt in made if prompt.reference is not None]


def inputs(folder: Path) -> list[dict[str, str]]:
    folder.mkdir(exist_ok=True)
    picture(300, 100).save(folder / "wide.png")
    picture(90, 90, seed=1).save(folder / "small.jpg")
    return [{"path": str(folder / name), "prompt": f"edit {name}"} for name in ("wide.png", "small.jpg")]


def test_without_others_the_first_pairs_are_edited_by_their_captions(run: Run) -> None:
    _, _, samples = run
    made = shown(prompts(run))
    assert [text for text, _ in made] == ["反转颜色", "invert the colours"]
    for text, key in made:  # a held-out pair comes before others
        first = next(sample for sample in samples if sample.captions == (text,))
        assert first.reference is not None
        assert first.reference.file.key == key


def test_prompts_edit_the_first_picture_and_given_pictures_have_their_own(run: Run, tmp_path: Path) -> None:
    given = inputs(tmp_path)
    first = shown(prompts(run))[0][1]
    assert shown(prompts(run, validation_prompts=("a", "b"))) == [("a", first), ("b", first)]
    own = [("edit wide.png", "wide.png"), ("edit small.jpg", "small.jpg")]
    assert shown(prompts(run, validation_input=given)) == own
    both = prompts(run, validation_input=given, validation_prompt="a", validation_base_prompts=("a cat",))
    assert shown(both) == [*own, ("a", "wide.png"), ("a cat", "wide.png")]
    assert [prompt.is_base for prompt in both] == [False, False, False, True]


def test_changed_prompts_replace_the_instructions_of_given_pictures(run: Run, tmp_path: Path) -> None:
    config, encoders, samples = run
    write_changed_prompts(tmp_path, ChangedPrompts(prompts=("changed",)))
    options = config.model_dump() | {"validation_input": inputs(tmp_path), "output_dir": tmp_path}
    settings = with_changes(select(TrainConfig.model_validate(options), PromptSettings), tmp_path)
    assert shown(validation_prompts(settings, encoders, samples)) == [("changed", "wide.png")]


def test_an_edit_has_the_area_of_the_size_and_the_ratio_of_its_picture(run: Run, tmp_path: Path) -> None:
    given = inputs(tmp_path)
    sizes = {(prompt.width_px, prompt.height_px) for prompt in prompts(run, validation_input=given)}
    assert sizes == {(224, 80), (128, 128)}
    small = prompts(run, validation_input=given, validation_resolution="64x64")
    assert [(prompt.width_px, prompt.height_px) for prompt in small] == [(112, 48), (64, 64)]


def test_the_name_of_an_edit_follows_from_the_picture(run: Run, tmp_path: Path) -> None:
    given = inputs(tmp_path)
    before = prompts(run, validation_input=given)
    assert json.dumps(before[0].facts)
    picture(300, 100, seed=7).save(tmp_path / "wide.png")
    after = prompts(run, validation_input=given)
    assert before[0].name != after[0].name
    assert before[1].name == after[1].name


@pytest.mark.parametrize(
    ("name", "code"),
    [("lost.png", "validation_picture_unreadable"), ("text.png", "picture_is_text"),
     ("strip.png", "validation_picture_too_oblong")],
)  # fmt: skip
def test_pictures_that_cannot_be_edited_are_named(run: Run, tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "text.png").write_bytes(b"no picture")
    picture(900, 100).save(tmp_path / "strip.png")
    with pytest.raises(ConfigError) as caught:
        prompts(run, validation_input=[{"path": str(tmp_path / name), "prompt": "a"}])
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (code, "validation_input")
    assert str(tmp_path / name) in str(problem)
