"""Pictures that are held out of training: a share of a dataset, or a dataset of their own."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from longcat.errors import DataError
from longcat.model.flavour import describe
from tests.trainer.data.scans import config, keys, look, picture, warnings
from trainer.config.options import TrainConfig
from trainer.data.held_out import in_order
from trainer.data.report import describe as describe_data
from trainer.data.scan import take_inventory


def write(folder: Path, captions: dict[str, str]) -> Path:
    for name, caption in captions.items():
        picture(folder / f"{name}.png", caption)
    return folder


def bilingual(folder: Path, count: int = 20) -> Path:
    return write(folder, {f"{i}": "一只猫" if i % 4 == 0 else "a cat" for i in range(count)})


def test_nothing_is_held_out_unasked(tmp_path: Path) -> None:
    found = look(config(bilingual(tmp_path / "set")))
    assert (len(found.samples), found.held_out) == (20, ())


def test_a_share_of_each_language_is_held_out_by_content(tmp_path: Path) -> None:
    folder = bilingual(tmp_path / "set")
    found = look(config(folder), eval_share=0.2)
    assert [len(found.samples), len(found.held_out)] == [16, 4]
    assert sorted(sample.captions[0] for sample in found.held_out) == ["a cat", "a cat", "a cat", "一只猫"]
    assert found.hash != look(config(folder)).hash
    assert "held out, to measure the loss: 4 pictures" in describe_data(found)
    for path in folder.iterdir():  # other names, same pictures
        path.rename(path.with_name(f"renamed-{path.name}"))
    again = look(config(folder), eval_share=0.2)
    assert {sample.digest for sample in again.held_out} == {sample.digest for sample in found.held_out}
    assert again.hash == found.hash


def test_copies_of_a_held_out_picture_are_held_out_too(tmp_path: Path) -> None:
    folder = bilingual(tmp_path / "set")
    held = look(config(folder), eval_share=0.2).held_out[0].key
    (folder / "copy.png").write_bytes((folder / held).read_bytes())
    (folder / "copy.txt").write_text("a copied cat")
    found = look(config(folder), eval_share=0.2)
    assert {held, "copy.png"} <= {sample.key for sample in found.held_out}
    assert "copy.png" not in keys(found)


def test_the_only_picture_of_a_language_is_trained_on(tmp_path: Path) -> None:
    found = look(config(write(tmp_path / "set", {"a": "a cat", "b": "a dog", "c": "一只猫"})), eval_share=0.5)
    assert [sample.captions[0] for sample in found.held_out] in (["a cat"], ["a dog"])
    assert "eval_share_of_too_few" not in warnings(found)


def test_a_share_that_holds_nothing_out_is_a_warning(tmp_path: Path) -> None:
    data = config(write(tmp_path / "set", {"a": "a cat", "c": "一只猫"}))
    found = look(data, eval_share=0.5)
    assert (len(found.samples), found.held_out) == (2, ())
    assert "eval_share = 0.5: none of the 2 usable pictures" in warnings(found)["eval_share_of_too_few"]
    assert "eval_share_of_too_few" not in warnings(look(data))


def test_a_dataset_of_type_eval_is_not_trained_on(tmp_path: Path) -> None:
    folder, other = bilingual(tmp_path / "set"), write(tmp_path / "eval", {"x": "a dog", "y": "a cow"})
    (other / "0.png").write_bytes((folder / "0.png").read_bytes())
    (other / "0.txt").write_text("a cat that is trained on")
    found = look(config(folder), config(other, id="held", dataset_type="eval", trigger_words=["tok"]))
    assert [sample.key for sample in found.held_out] == ["x.png", "y.png"]
    assert (len(found.samples), found.trigger_words) == (20, ())
    assert found.hash == look(config(folder)).hash, "held-out pictures do not change the training"
    assert "1 pictures of the datasets with dataset_type eval" in warnings(found)["held_out_trained_on"]
    first = in_order(found.held_out)
    assert in_order(found.held_out[::-1]) == first


def inventory(tmp_path: Path, **options: Any) -> Any:
    made = TrainConfig.model_validate(
        {"model_flavour": "embedded", "output_dir": str(tmp_path / "out"), "resolution": 128} | options
    )
    return take_inventory(made, lambda: describe("embedded", revision=None))


def test_one_of_several_eval_datasets_can_be_chosen(tmp_path: Path) -> None:
    sets = [
        {"id": "train", "instance_data_dir": str(bilingual(tmp_path / "set"))},
        {"id": "one", "dataset_type": "eval", "instance_data_dir": str(write(tmp_path / "one", {"x": "a dog"}))},
        {"id": "two", "dataset_type": "eval", "instance_data_dir": str(write(tmp_path / "two", {"y": "a cow"}))},
    ]
    assert [s.key for s in inventory(tmp_path, data_backend_config=sets).held_out] == ["x.png", "y.png"]
    chosen = inventory(tmp_path, data_backend_config=sets, eval_dataset_id="two")
    assert [s.key for s in chosen.held_out] == ["y.png"]
    with pytest.raises(ValidationError, match="not the id of a dataset with dataset_type eval"):
        inventory(tmp_path, data_backend_config=sets, eval_dataset_id="train")
    with pytest.raises(DataError, match="all 2 usable pictures are held out, and there are none to train on"):
        inventory(tmp_path, data_backend_config=sets[1:])


@pytest.mark.parametrize(
    "option",
    [
        {"publish_checkpoint": "best"}, {"early_stopping_patience": 2}, {"publish_min_improvement": 0},
        {"publish_max_overfit": 0.1},
    ],
)  # fmt: skip
def test_options_about_held_out_pictures_need_some(tmp_path: Path, option: dict[str, Any]) -> None:
    folder = write(tmp_path / "set", {"a": "a cat"})
    with pytest.raises(ValidationError, match="none are held out; set eval_share"):
        inventory(tmp_path, instance_data_dir=str(folder), **option)
    with pytest.raises(DataError) as caught:
        inventory(tmp_path, instance_data_dir=str(folder), eval_share=0.5, **option)
    assert caught.value.problems[0].code == "nothing_held_out"
    assert caught.value.problems[0].field == next(iter(option))
    sets = [
        {"id": "train", "instance_data_dir": str(folder)},
        {"id": "same", "dataset_type": "eval", "instance_data_dir": str(folder)},
    ]
    with pytest.raises(DataError, match="1 pictures of the datasets with dataset_type eval are training pictures too"):
        inventory(tmp_path, data_backend_config=sets, **option)


def test_copies_are_looked_for_among_validation_pictures(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="copies are looked for among validation pictures"):
        inventory(tmp_path, instance_data_dir="x", validation_disable=True, publish_max_copies=0)
