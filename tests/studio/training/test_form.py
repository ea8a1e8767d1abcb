"""The training form: every option on it, files in and out of it."""

import json
import re

import pytest

from studio.training.form import SET_BY_STUDIO, as_file, as_typed, fields, read_file, read_form
from studio.training.option_names import option_names
from tests import ROOT
from trainer.config.options import TrainConfig


def test_every_option_is_on_the_form_with_a_text_in_both_languages() -> None:
    assert set(fields()) | SET_BY_STUDIO == set(TrainConfig.model_fields)
    english, chinese = option_names("en"), option_names("zh")
    for name in fields():
        assert english[name].label
        assert english[name].help
        assert re.search(r"[一-鿿A-Z]", chinese[name].label), name
        assert re.search(r"[一-鿿]", chinese[name].help) or name == "model_family"


def test_an_unchanged_form_is_the_default() -> None:
    reading = read_form(as_typed({}))
    assert (reading.options, reading.config, reading.problems) == ({}, TrainConfig(), ())


@pytest.mark.parametrize("path", ["examples/ink/config.json", "config/config.json.example"])
def test_a_file_goes_through_the_form_unchanged(path: str) -> None:
    given = read_file((ROOT / path).read_text(encoding="utf-8"))
    assert given.config is not None
    typed = read_form(as_typed(given.options))
    expected = given.config.model_copy(update={name: TrainConfig.model_fields[name].default for name in SET_BY_STUDIO})
    assert typed.config == expected
    again = read_file(as_file(typed.options))
    assert again.config == typed.config


def test_lists_and_several_datasets_go_through_the_form() -> None:
    options = {
        "data_backend_config": [
            {"id": "a", "instance_data_dir": "/a", "repeats": 2, "resolution": "128x128,192x64"},
            {"id": "b", "instance_data_dir": "s3://bucket/b"},
        ],
        "validation_prompts": ["one, two", "三"], "lora_targets": ["to_q", "to_k"], "flow_schedule_shift": 3,
        "gradient_checkpointing": "auto", "use_ema": True,
    }  # fmt: skip
    given = read_file(json.dumps(options))
    assert given.config is not None, given.problems
    assert read_form(as_typed(given.options)).config == given.config


def test_simpletuners_file_is_read_and_what_has_no_effect_is_noted() -> None:
    reading = read_file('{"--model_type": "lora", "checkpoint_step_interval": 50, "push_to_hub": false, // note\n}')
    assert reading.config is not None
    assert reading.config.checkpointing_steps == 50
    assert as_typed(reading.options)["checkpointing_steps"] == "50"
    assert [note.field for note in reading.notes] == ["push_to_hub"]
    wrong = read_file('{"lycoris_config": "x.json", "learning_rat": 1, "lora_rank": 0}')
    assert [(problem.field, problem.code) for problem in wrong.problems] == [
        ("learning_rat", "unknown_field"), ("lora_rank", "greater_than_equal"),
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["lycoris_config", "data_backend_config"])
def test_an_option_that_names_another_file_is_one_problem(option: str) -> None:
    given = {"lora_type": "lycoris", option: "config/x.json"}
    typed = (read_form({**given, option: text}) for text in ("config/x.json", '"config/x.json"'))
    for reading in (read_file(json.dumps(given)), *typed):
        found = [(problem.field, problem.value) for problem in reading.problems if problem.field == option]
        assert found == [(option, "config/x.json")]
    spoiled = read_form({**given, option: "{"})
    assert [problem.code for problem in spoiled.problems if problem.field == option] == ["text_not_json"]


@pytest.mark.parametrize("option", ["distillation", "validation_input"])
def test_the_name_of_a_file_is_no_value_of_other_options(option: str) -> None:
    assert [problem.field for problem in read_form({option: "a.json"}).problems] == [option]


def test_pairs_and_pictures_to_edit_go_through_the_form() -> None:
    given = {
        "model_flavour": "edit",
        "data_backend_config": [
            {"id": "edits", "instance_data_dir": "/data/edits", "conditioning_data": "refs"},
            {"id": "refs", "instance_data_dir": "/data/refs", "conditioning_type": "reference_loose"},
        ],
        "validation_input": [{"path": "/data/a.png", "prompt": "make it blue"}],
    }
    first = read_file(json.dumps(given))
    assert first.problems == ()
    assert read_form(as_typed(first.options)).config == first.config
