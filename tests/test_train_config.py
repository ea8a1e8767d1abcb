import json
from pathlib import Path

import pytest

from longcat.errors import ConfigError
from trainer.config import TrainConfig
from trainer.config_file import foreign_keys, load_config, parse_assignments

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


def said(overrides: dict[str, object], path: Path | None = None) -> TrainConfig:
    return load_config(path, overrides)[0]


def refusal(**overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    return str(caught.value)


def test_simpletuners_quickstart_is_taken_as_it_stands(tmp_path: Path) -> None:
    config = said({}, write(tmp_path, QUICKSTART))
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
    assert sorted(warning.split()[0] for warning in warnings) == ["disable_benchmark", "push_to_hub"]


def test_our_example_is_a_valid_configuration() -> None:
    path = Path(__file__).parent.parent / "config" / "config.json.example"
    config = said({}, path)
    assert config.model_family == "longcat_image"
    assert config.datasets


def test_arguments_override_the_file_in_every_spelling(tmp_path: Path) -> None:
    arguments = ["--learning_rate", "2e-4", "--lora-rank=8", "seed=7", "--enable_group_offload", "--group_offload_type",
                 "block_level", "--validation_resolution", "1024x1024,1344x768"]  # fmt: skip
    config = said(parse_assignments(arguments), write(tmp_path, QUICKSTART))
    assert (config.learning_rate, config.lora_rank, config.seed, config.enable_group_offload) == (2e-4, 8, 7, True)
    assert config.validation_resolution == ("1024x1024", "1344x768")


def test_a_negative_number_is_a_value_and_a_stray_word_is_refused() -> None:
    assert parse_assignments(["--x", "-3"]) == {"x": -3}
    with pytest.raises(ConfigError, match="'stray'"):
        parse_assignments(["stray"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"lora_rnk": 8}, ["lora_rnk", "'lora_rank'"]),
        ({"controlnet": True}, ["controlnet", "SimpleTuner"]),
        ({"lycoris_config": "x.json"}, ["lycoris_config", "lora_type standard"]),
        ({"learning_rate": "fast"}, ["learning_rate", "'fast'"]),
        ({"learning_rate": -1}, ["learning_rate", "-1", "greater than 0"]),
        ({"instance_data_dir": "x", "caption_strategy": "texfile"}, ["caption_strategy: 'texfile'", "'textfile'"]),
        ({"instance_data_dir": "x", "background_colour": "red"}, ["background_colour: 'red'", "#rrggbb"]),
        ({"instance_data_dir": "s3://"}, ["instance_data_dir: 's3://'", "in which bucket"]),
        ({"learning_rate": True}, ["learning_rate", "True", "give it a value"]),
        ({"lora_targets": "to_q"}, ["lora_targets 'to_q'", "attention", "all-linear"]),
        ({"gradient_checkpointing": "maybe"}, ["gradient_checkpointing 'maybe'", "auto"]),
        ({"model_family": "flux"}, ["model_family", "'flux'", "longcat_image"]),
        ({"base_model_precision": "nf4-bnb"}, ["nf4-bnb", "int4-quanto"]),
        ({"aspect_bucket_alignment": 32}, ["aspect_bucket_alignment", "32", "64"]),
        ({"validation_resolution": "1000x1000"}, ["validation_resolution", "1000x1000", "64"]),
        ({"publish_to": "file:///x"}, ["adapter_name"]),
        ({"fsdp_enable": True, "base_model_precision": "int8-quanto"}, ["fsdp_enable", "no_change"]),
        ({"group_offload_use_stream": True}, ["group_offload_use_stream", "leave it out"]),
        (
            {"enable_group_offload": True, "group_offload_type": "leaf_level", "use_dora": True},
            ["use_dora", "block_level"],
        ),
        ({"data_backend_config": [{"id": "a"}]}, ["instance_data_dir"]),
        ({"data_backend_config": [{"id": "a", "instance_data_dir": "x", "repeat": 2}]}, ["repeat", "'repeats'"]),
        ({"data_backend_config": [{"id": "a", "type": "aws", "aws_bucket_name": "b", "aws_secret_access_key": "s"}]},
         ["AWS_SECRET_ACCESS_KEY", "environment"]),
        ({"data_backend_config": "no/such.json"}, ["no/such.json", "No such file"]),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named_with_its_value_and_what_to_give(
    overrides: dict[str, object], parts: list[str]
) -> None:
    message = refusal(**overrides)
    assert all(part in message for part in parts), message


def test_all_mistakes_are_said_at_once() -> None:
    message = refusal(lora_rank=0, train_batch_size="x", lora_rnk=8, controlnet=True)
    assert all(name in message for name in ("lora_rank 0", "train_batch_size 'x'", "lora_rnk", "controlnet"))


def test_a_file_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check the path"):
        load_config(tmp_path / "none.json", {})
    with pytest.raises(ConfigError, match="not JSON"):
        load_config(write(tmp_path, "{"), {})
    with pytest.raises(ConfigError, match="object"):
        load_config(write(tmp_path, "[1]"), {})


def test_datasets_come_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, json.dumps([
        {"id": "pictures", "type": "local", "instance_data_dir": "p", "caption_strategy": "textfile", "repeats": 3,
         "resolution": 1024, "resolution_type": "pixel_area", "cache_dir_vae": "cache/vae"},
        {"id": "more", "instance_data_dir": "s3://bucket/some/prefix"},
        {"id": "off", "instance_data_dir": "q", "disabled": True},
        {"id": "text", "dataset_type": "text_embeds", "default": True, "type": "local", "cache_dir": "cache/text"},
    ]), "datasets.json")  # fmt: skip
    config = said({"data_backend_config": "datasets.json"}, write(tmp_path, QUICKSTART))
    # The path is looked for beside the configuration when it is not in the working directory.
    assert [dataset.id for dataset in config.datasets] == ["pictures", "more"]
    assert (config.datasets[1].type, config.datasets[1].aws_bucket_name) == ("aws", "bucket")
    assert config.datasets[1].aws_data_prefix == "some/prefix"


def test_every_field_says_what_it_is() -> None:
    assert [name for name, field in TrainConfig.model_fields.items() if not field.description] == []


def test_no_option_of_ours_counts_as_foreign() -> None:
    assert not foreign_keys() & TrainConfig.model_fields.keys()
