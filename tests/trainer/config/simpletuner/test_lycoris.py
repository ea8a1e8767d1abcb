"""``lora_type lycoris``: accepted configurations, and rejected options with their reasons."""

import json
from pathlib import Path
from typing import Any

import pytest

from longcat.errors import ConfigError
from trainer.config.options import TrainConfig
from trainer.config.reading.file import load_config
from trainer.config.settings import public_options

# SimpleTuner's example longcat-image-edit.lycoris-lokr.
EXAMPLE = {
    "bypass_mode": True, "algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_dim": 10000, "linear_alpha": 1,
    "factor": 16, "apply_preset": {
        "target_module": ["LongCatImageTransformer2DModel"],
        "module_algo_map": {"LongCatImageTransformer2DModel": {"factor": 16}},
    },
}  # fmt: skip
OPTIONS: dict[str, Any] = {"model_flavour": "embedded", "lora_type": "lycoris", "validation_lycoris_strength": 1.0}


def test_simpletuners_files_are_taken_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "lycoris_config.json").write_text(json.dumps(EXAMPLE))
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({**OPTIONS, "lycoris_config": "lycoris_config.json", "lora_rank": 128, "lora_alpha": 128})
    )
    config, warnings = load_config(file, {})
    lycoris = config.lycoris_config
    assert lycoris is not None
    assert (lycoris.algo, lycoris.factor, lycoris.full_matrix) == ("lokr", 16, True)
    without = {warning.field for warning in warnings if warning.code == "lora_option_with_lycoris"}
    assert without == {"lora_rank, lora_alpha"}
    # A checkpoint and a manifest record the whole object, not the file's name.
    again = TrainConfig.model_validate(json.loads(json.dumps(public_options(config))))
    assert again.lycoris_config == lycoris
    assert load_config(file, {"lycoris_config": json.loads(json.dumps(EXAMPLE))})[0].lycoris_config == lycoris


def test_a_configuration_of_lycoris_has_no_effect_with_lora() -> None:
    config, warnings = load_config(None, {"model_flavour": "embedded", "lycoris_config": "no/such.json"})
    assert config.lycoris_config is None
    assert [warning.field for warning in warnings] == ["lycoris_config"]


def test_classes_that_this_model_does_not_have_are_named() -> None:
    documented = {"algo": "lokr", "factor": 10, "apply_preset": {"target_module": ["Attention", "FeedForward"]}}
    _, warnings = load_config(None, {**OPTIONS, "lycoris_config": documented})
    assert [w.details["classes"] for w in warnings if w.code == "lycoris_class_unknown"] == ["Attention"]


@pytest.mark.parametrize(
    ("lycoris", "field", "code"),
    [
        (None, "lycoris_config", "lycoris_config_missing"),
        ("no/such.json", "lycoris_config", "config_file_unreadable"),
        ([], "lycoris_config", "model_type"),
        ({}, "lycoris_config.algo", "missing"),
        ({"algo": "locon"}, "lycoris_config.algo", "lycoris_algo_unsupported"),
        ({"algo": "lokr", "multiplier": 0.5}, "lycoris_config.multiplier", "literal_error"),
        ({"algo": "lokr", "use_scalar": True}, "lycoris_config.use_scalar", "lycoris_option_unsupported"),
        ({"algo": "lokr", "dora_wd": True}, "lycoris_config.dora_wd", "lycoris_option_unsupported"),
        ({"algo": "lokr", "linear_dims": 4}, "lycoris_config.linear_dims", "unknown_field"),
        ({"algo": "loha", "linear_dim": 0}, "lycoris_config.linear_dim", "greater_than_equal"),
        (
            {"algo": "lokr", "apply_preset": {"module_algo_map": {"FeedForward": {"algo": "oft"}}}},
            "lycoris_config.apply_preset.module_algo_map.FeedForward.algo", "lycoris_algo_unsupported",
        ),
        (
            {"algo": "lokr", "apply_preset": {"target_name": ["("]}},
            "lycoris_config.apply_preset.target_name", "lycoris_pattern_invalid",
        ),
    ],
)  # fmt: skip
def test_what_is_not_had_is_refused_by_name(lycoris: object, field: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {**OPTIONS, "lycoris_config": lycoris})
    assert [(problem.field, problem.code) for problem in caught.value.problems] == [(field, code)]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"use_dora": True}, "lycoris_without"),
        ({"use_rslora": True}, "lycoris_without"),
        ({"validation_lycoris_strength": 0.5}, "simpletuner_option"),
    ],
)
def test_options_that_lycoris_does_not_have(changes: dict[str, object], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {**OPTIONS, "lycoris_config": EXAMPLE, **changes})
    assert [problem.code for problem in caught.value.problems] == [code]
