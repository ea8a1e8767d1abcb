"""Options from a command line, read by the type of each option."""

from pathlib import Path

import pytest

from longcat.errors import ConfigError
from tests.trainer.config.test_options import QUICKSTART, loaded, write
from trainer.config.reading.assignments import parse_assignments


def test_arguments_override_the_file_in_every_spelling(tmp_path: Path) -> None:
    arguments = ["--learning_rate", "2e-4", "--lora-rank=8", "seed=7", "--enable_group_offload", "--group_offload_type",
                 "block_level", "--validation_resolution", "1024x1024,1344x768"]  # fmt: skip
    config = loaded(parse_assignments(arguments), write(tmp_path, QUICKSTART))
    assert (config.learning_rate, config.lora_rank, config.seed, config.enable_group_offload) == (2e-4, 8, 7, True)
    assert config.validation_resolution == ("1024x1024", "1344x768")


def test_a_negative_number_is_a_value_and_a_stray_word_is_refused() -> None:
    assert parse_assignments(["--x", "-3"]) == {"x": -3}
    with pytest.raises(ConfigError, match="argument = stray: not an assignment; give --key value or key=value"):
        parse_assignments(["stray"])


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ('validation_prompt="你好"', '"你好"'),
        ("validation_prompt=42", "42"),
        ("revision=0123", "0123"),
        ("validation_prompt=null", "null"),
        ("cache_dir=null", None),
        ('validation_prompts="你好" 的招牌', '"你好" 的招牌'),
        ("validation_prompts=2024", "2024"),
        ("trigger_words=1e5", "1e5"),
        ("trigger_words=true", "true"),
        ("data_backend_config=2024", "2024"),
        ("lycoris_config=" + "[" * 90_000, "[" * 90_000),
        ("adapter_name=true", "true"),
        ("cache_dir=1", "1"),
        ("data_backend_config=config/data.json", "config/data.json"),
        ('data_backend_config=[{"id": "a"}]', [{"id": "a"}]),
        ('validation_prompts=["a", "b"]', ["a", "b"]),
        ("lora_targets=all-linear", "all-linear"),
        ('lora_targets=["to_q"]', ["to_q"]),
        ("resolution=512", "512"),
        ("max_train_steps=1e3", 1000.0),
        ("use_ema=true", True),
        ("lora_alpha=null", None),
        ("--use-ema", True),
    ],
)
def test_a_value_is_read_by_the_type_of_its_option(argument: str, value: object) -> None:
    ((parsed),) = parse_assignments([argument]).values()
    assert parsed == value


def test_text_options_of_several_values_keep_their_text() -> None:
    given = ['validation_prompts="a" sign', "trigger_words=2024, ink", "resolution=512", "validation_base_prompts=true"]
    config = loaded(parse_assignments(given))
    assert (config.validation_prompts, config.trigger_words) == (('"a" sign',), ("2024", "ink"))
    assert (config.resolution, config.validation_base_prompts) == ((512.0,), ("true",))


def test_texts_become_switches_and_numbers_of_a_choice() -> None:
    config = loaded(parse_assignments(["gradient_checkpointing=true", "flow_schedule_shift=3", "lora_alpha=null"]))
    assert (config.gradient_checkpointing, config.flow_schedule_shift, config.lora_alpha) == (True, 3.0, None)
