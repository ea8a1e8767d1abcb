import json
from pathlib import Path

import pytest

from longcat.errors import ConfigError
from longcat.problem import Problem
from tests import ROOT
from trainer.config.options import TrainConfig
from trainer.config.reading.file import load_config
from trainer.config.simpletuner.options import foreign_keys

QUICKSTART = """{
  "model_type": "lora",
  "model_family": "longcat_image",
  "model_flavour": "final",                // options: final, dev
  "pretrained_model_name_or_path": null,   // auto-selected from flavour; override with a local path if needed
  "base_model_precision": "int8-quanto",   // good default; fp8-torchao also works
  "train_batch_size": 1,
  "gradient_checkpointing": true,
  "lora_rank": 16,
  "learning_rate": 1e-4,
  "validation_resolution": "1024x1024",
  "validation_guidance": 4.5,
  "validation_num_inference_steps": 30
}
"""


def write(folder: Path, text: str, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def loaded(overrides: dict[str, object], path: Path | None = None) -> TrainConfig:
    return load_config(path, overrides)[0]


def problems(**overrides: object) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    return caught.value.problems


def test_simpletuners_quickstart_is_taken_as_it_stands(tmp_path: Path) -> None:
    config = loaded({}, write(tmp_path, QUICKSTART))
    assert (config.flavour, config.base_model_precision, config.gradient_checkpointing) == (
        "final",
        "int8-quanto",
        True,
    )
    assert config.validation_resolution == ("1024x1024",)
    assert (config.alpha, config.learning_rate, config.aspect_bucket_alignment) == (16, 1e-4, 64)


def test_a_simpletuner_file_with_dashes_and_text_for_everything(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({
        "--model_family": "longcat_image", "--train_batch_size": "2", "--gradient_checkpointing": "true",
        "--learning_rate": "3e-4", "--optimizer": "adamw_bf16", "--checkpoint_step_interval": 50, "--push_to_hub": "false",
        "--validation_step_interval": "25", "--lora_type": "standard", "--disable_benchmark": False,
    }))  # fmt: skip
    config, warnings = load_config(path, {})
    assert (config.train_batch_size, config.gradient_checkpointing, config.learning_rate) == (2, True, 3e-4)
    assert (config.optimizer, config.checkpointing_steps, config.validation_steps) == ("adamw", 50, 25)
    assert [(warning.code, warning.field) for warning in warnings] == [
        ("option_without_effect", "push_to_hub, disable_benchmark")
    ]
    assert {warning.code for warning in warnings} == {"option_without_effect"}


def test_our_example_is_a_valid_configuration() -> None:
    path = ROOT / "config" / "config.json.example"
    config = loaded({}, path)
    assert config.model_family == "longcat_image"
    assert config.datasets


@pytest.mark.parametrize(
    ("overrides", "codes"),
    [
        ({"lora_rnk": 8}, {"lora_rnk": "unknown_field"}),
        ({"qqqq": 8}, {"qqqq": "unknown_option"}),
        ({"controlnet": True}, {"controlnet": "simpletuner_option"}),
        ({"learning_rate": "fast"}, {"learning_rate": "float_parsing"}),
        ({"learning_rate": -1}, {"learning_rate": "greater_than"}),
        ({"learning_rate": True}, {"learning_rate": "option_is_not_a_switch"}),
        ({"flow_schedule_shift": -1}, {"flow_schedule_shift": "greater_than literal_error"}),
        ({"instance_data_dir": "x", "caption_strategy": "texfile"}, {"caption_strategy": "literal_error"}),
        ({"instance_data_dir": "x", "background_colour": "red"}, {"background_colour": "not_a_colour"}),
        ({"instance_data_dir": "s3://"}, {"instance_data_dir": "dataset_bucket_not_given"}),
        ({"instance_data_dir": "s3://b/a#1"}, {"instance_data_dir": "storage_uri_not_encoded"}),
        ({"publish_to": "file:///a?b", "adapter_name": "x"}, {"publish_to": "storage_uri_not_encoded"}),
        ({"publish_to": "ftp://x", "adapter_name": "x"}, {"publish_to": "storage_uri_invalid"}),
        ({"adapter_name": "final"}, {"adapter_name": "adapter_name_of_model"}),
        ({"adapter_name": "ink\n"}, {"adapter_name": "adapter_name_invalid"}),
        ({"instance_data_dir": "x", "background_colour": "#ff00ff\n"}, {"background_colour": "not_a_colour"}),
        (
            {"data_backend_config": [{"id": "a\n", "instance_data_dir": "x"}]},
            {"data_backend_config.0.id": "string_pattern_mismatch"},
        ),
        ({"lora_targets": "to_q"}, {"lora_targets": "literal_error tuple_type"}),
        ({"gradient_checkpointing": "maybe"}, {"gradient_checkpointing": "bool_parsing literal_error"}),
        ({"model_family": "flux"}, {"model_family": "literal_error"}),
        ({"aspect_bucket_alignment": 32}, {"aspect_bucket_alignment": "alignment_too_small"}),
        ({"aspect_bucket_alignment": 24}, {"aspect_bucket_alignment": "alignment_not_of_tokens"}),
        ({"validation_resolution": "1000x1000"}, {"validation_resolution": "validation_size_not_aligned"}),
        ({"resolution": "wide"}, {"resolution": "not_a_size"}),
        ({"publish_to": "file:///x"}, {"adapter_name": "adapter_name_missing"}),
        ({"adapter_name": "ink@3"}, {"adapter_name": "adapter_name_with_version"}),
        ({"fsdp_enable": True, "base_model_precision": "int8-quanto"}, {"fsdp_enable": "fsdp_needs_unquantized_base"}),
        (
            {"data_backend_config": [{"id": "a"}]},
            {"data_backend_config.0.instance_data_dir": "dataset_folder_not_given"},
        ),
        (
            {"data_backend_config": [{"id": "a", "instance_data_dir": "x", "repeat": 2}]},
            {"data_backend_config.0.repeat": "unknown_field"},
        ),
        (
            {"data_backend_config": [{"id": "a", "type": "aws", "aws_bucket_name": "b", "aws_secret_access_key": "s"}]},
            {"data_backend_config.0.aws_secret_access_key": "secret_in_config"},
        ),
        ({"data_backend_config": "no/such.json"}, {"data_backend_config": "config_file_unreadable"}),
    ],
)
def test_a_wrong_option_is_a_problem_of_its_field(overrides: dict[str, object], codes: dict[str, str]) -> None:
    found: dict[str, str] = {}
    for problem in problems(**overrides):
        found[problem.field] = f"{found.get(problem.field, '')} {problem.code}".strip()
    assert found == codes


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"lora_rnk": 8}, "lora_rnk = 8: unknown field; did you mean 'lora_rank'?"),
        ({"learning_rate": "fast"}, "learning_rate = fast: not a number; give a number"),
        ({"lora_rank": 0}, "lora_rank = 0: too small; give at least 1"),
        ({"instance_data_dir": "s3://"}, "instance_data_dir = s3://: no bucket; give the bucket of the pictures"),
        (
            {"aspect_bucket_alignment": 32},
            "aspect_bucket_alignment = 32: less than 64, the alignment that flavour 'final' was trained with; give a "
            "multiple of 64",
        ),
        ({"learning_rate": True}, "learning_rate = true: not a switch; give it a value"),
    ],
)
def test_the_sentence_of_a_problem(overrides: dict[str, object], sentence: str) -> None:
    (problem,) = problems(**overrides)
    assert str(problem) == sentence


@pytest.mark.parametrize(
    "overrides", [{"base_model_precision": "nf4-bnb"}, {"adapter_name": "In k", "publish_to": "file:///x"}]
)
def test_a_value_that_longcat_refuses_is_a_problem_of_its_option(overrides: dict[str, object]) -> None:
    (problem,) = problems(**overrides)
    name = next(iter(overrides))
    assert (problem.field, problem.value) == (name, overrides[name])


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"validation_prompt": "\udcc4\udce3"}, "validation_prompt"),
        ({"instance_data_dir": "/\udcc4"}, "instance_data_dir"),
        ({"output_dir": "/\udcc4"}, "output_dir"),
        ({"validation_prompts": ["a", "\ud83d"]}, "validation_prompts.1"),
        ({"lora_type": "lycoris", "lycoris_config": {"algo": "lokr", "\ud83d": 1}}, "lycoris_config.\\ud83d"),
    ],
)
def test_text_that_is_no_utf_8_is_a_problem_of_its_option(overrides: dict[str, object], field: str) -> None:
    """As arguments and variables have it on a terminal with another encoding."""
    (problem,) = problems(**overrides)
    assert (problem.code, problem.field) == ("lone_surrogate", field)
    str(problem).encode()


def test_the_home_directory_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [
        name
        for name, about in TrainConfig.model_fields.items()
        if "Path" in str(about.annotation) + str(about.metadata)
    ]
    texts = ["instance_data_dir", "pretrained_model_name_or_path", "resume_from_checkpoint"]
    assert {"output_dir", "cache_dir", "init_lora", "user_prompt_library"} <= set(paths)
    given = {name: f"~/{name}" for name in {*paths, *texts}}
    config = loaded(given)
    assert {name: str(getattr(config, name)) for name in given} == {name: f"{tmp_path}/{name}" for name in given}
    (tmp_path / "sets.json").write_text('[{"id": "a", "instance_data_dir": "~/a", "caption_file": "~/a/rows.csv"}]')
    (dataset,) = loaded({"data_backend_config": "~/sets.json"}).datasets
    assert (dataset.instance_data_dir, dataset.caption_file) == (f"{tmp_path}/a", f"{tmp_path}/a/rows.csv")


@pytest.mark.parametrize("path", ["$HOME/out", "${HOME}/out", "%USERPROFILE%/out", "~nobody-here/out"])
def test_what_only_a_shell_replaces_names_no_directory(path: str) -> None:
    found = problems(output_dir=path, cache_dir=path, instance_data_dir=path, init_lora=path)
    assert {problem.code for problem in found} == {"path_not_expanded"}
    assert {problem.field for problem in found} == {"output_dir", "cache_dir", "instance_data_dir", "init_lora"}
    assert str(loaded({"output_dir": f"./{path}"}).output_dir) == path


@pytest.mark.parametrize("given", [{"output_dir": "."}, {"cache_dir": "."}, {"output_dir": "x", "cache_dir": "x/../."}])
def test_output_and_cache_are_not_the_data_itself(given: dict[str, object]) -> None:
    (problem,) = problems(instance_data_dir=str(Path.cwd()), **given)
    assert (problem.code, problem.field) == ("output_in_data", "output_dir")


@pytest.mark.parametrize("number", [10**400, -(10**400), float("inf"), float("nan"), 2**63])
def test_numbers_beyond_what_a_machine_counts(number: float) -> None:
    fields = ["seed", "validation_seed", "lora_rank", "train_batch_size", "max_train_steps"]
    if number != 2**63:
        fields += ["learning_rate", "lora_alpha", "max_grad_norm", "validation_guidance", "lora_dropout"]
    assert {problem.field for problem in problems(**dict.fromkeys(fields, number))} == set(fields)


def test_all_problems_are_reported_at_once() -> None:
    found = problems(lora_rank=0, train_batch_size="x", lora_rnk=8, controlnet=True)
    assert {problem.field for problem in found} == {"lora_rank", "train_batch_size", "lora_rnk", "controlnet"}


def test_a_file_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    for path, code in (
        (tmp_path / "none.json", "config_file_unreadable"),
        (write(tmp_path, "{", "broken.json"), "text_not_json"),
        (write(tmp_path, "[1]", "list.json"), "config_not_object"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(path, {})
        assert [(p.code, p.field, p.value) for p in caught.value.problems] == [(code, "config", str(path))]


def test_datasets_come_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, json.dumps([
        {"id": "pictures", "type": "local", "instance_data_dir": "p", "caption_strategy": "textfile", "repeats": 3,
         "resolution": 1024, "resolution_type": "pixel_area", "cache_dir_vae": "cache/vae"},
        {"id": "more", "instance_data_dir": "s3://bucket/some/prefix"},
        {"id": "off", "instance_data_dir": "q", "disabled": True},
        {"id": "text", "dataset_type": "text_embeds", "default": True, "type": "local", "cache_dir": "cache/text"},
    ]), "datasets.json")  # fmt: skip
    config = loaded({"data_backend_config": "datasets.json"}, write(tmp_path, QUICKSTART))
    # A path that is not in the working directory is relative to the configuration.
    assert [dataset.id for dataset in config.datasets] == ["pictures", "more"]
    assert (config.datasets[1].type, config.datasets[1].aws_bucket_name) == ("aws", "bucket")
    assert config.datasets[1].aws_data_prefix == "some/prefix"


def test_every_field_has_a_description() -> None:
    assert [name for name, field in TrainConfig.model_fields.items() if not field.description] == []


def test_no_own_option_counts_as_foreign() -> None:
    assert not foreign_keys() & TrainConfig.model_fields.keys()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"output_dir": "/tmp/a\0b"}, "output_dir = /tmp/a.*b: has a zero byte"),
        ({"validation_prompt": "a\0cat"}, "validation_prompt = a.*cat: has a zero byte"),
        ({"lora_targets": []}, "lora_targets = .*too few"),
        ({"lora_targets": [""]}, "lora_targets"),
        ({"lora_dropout": 1}, "lora_dropout = 1"),
        ({"validation_resolution": "0x0"}, "validation_resolution = 0x0: the sides of 0x0 are not multiples"),
    ],
)
def test_values_that_no_training_can_use_are_refused_by_name(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(None, {"model_flavour": "embedded", **options})
