"""SimpleTuner's documented examples: each is accepted, or rejected for a stated reason.

The options are those of its repository (examples/longcat-image.peft-lora, documentation/DATALOADER.md, quickstarts).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from longcat.errors import ConfigError
from trainer.config.links import references_of
from trainer.config.options import TrainConfig
from trainer.config.reading.file import load_config

LONGCAT_EXAMPLE: dict[str, Any] = {
    "base_model_precision": "int8-quanto", "attention_mechanism": "native-flash", "checkpoint_step_interval": 10,
    "data_backend_config": "datasets.json", "disable_bucket_pruning": True, "flow_schedule_shift": 0,
    "flow_schedule_auto_shift": True, "gradient_checkpointing": True,
    "hub_model_id": "simpletuner-example-longcat_image-peft-lora", "learning_rate": 1e-4, "lora_alpha": 16, "lora_rank": 16,
    "lora_type": "standard", "lr_scheduler": "constant_with_warmup", "max_train_steps": 1000, "mixed_precision": "bf16",
    "model_family": "longcat_image", "model_type": "lora", "num_eval_images": 25, "num_train_epochs": 0,
    "optimizer": "adamw_bf16", "output_dir": "output/examples/longcat-image.peft-lora", "push_checkpoints_to_hub": False,
    "push_to_hub": False, "quantize_via": "cpu", "report_to": "none", "seed": 42, "tracker_project_name": "lora-training",
    "tracker_run_name": "example-training-run", "train_batch_size": 1, "use_ema": False, "vae_batch_size": 1,
    "validation_disable_unconditional": True, "validation_guidance": 4.0, "validation_guidance_rescale": 0.0,
    "validation_negative_prompt": "ugly, cropped, blurry, low-quality, mediocre average",
    "validation_num_inference_steps": 16,
    "validation_prompt": "\U0001f7eb is holding a sign that says hello world from longcat-image",
    "validation_prompt_library": False, "validation_resolution": "1024x1024", "validation_seed": 42, "validation_steps": 50,
}  # fmt: skip
TEXT_EMBEDS = {
    "id": "text", "dataset_type": "text_embeds", "default": True, "type": "aws", "aws_bucket_name": "embeds",
    "aws_region_name": None, "aws_access_key_id": "k", "aws_secret_access_key": "s", "aws_data_prefix": "",
    "cache_dir": "", "write_batch_size": 128,
}  # fmt: skip
DREAMBOOTH = {
    "id": "special", "type": "local", "instance_data_dir": "/data", "crop": True, "crop_style": "center",
    "crop_aspect": "square", "resolution": 1024, "minimum_image_size": 768, "maximum_image_size": 2048,
    "minimum_aspect_ratio": 0.5, "maximum_aspect_ratio": 3.0, "target_downsample_size": 1024,
    "resolution_type": "pixel_area", "prepend_instance_prompt": False, "instance_prompt": "something",
    "only_instance_prompt": False, "caption_strategy": "textfile", "cache_dir_vae": "/cache", "repeats": 0,
}  # fmt: skip
LOCAL = {"id": "a", "type": "local", "dataset_type": "image", "instance_data_dir": "/data"}


def load(tmp_path: Path, options: dict[str, Any], **texts: Any) -> tuple[TrainConfig, dict[str, str]]:
    for name, content in texts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(options))
    config, warnings = load_config(path, {})
    codes = {warning.code for warning in warnings}
    return config, {code: ", ".join(each.field for each in warnings if each.code == code) for code in codes}


def test_the_example_for_longcat_is_taken_as_it_stands(tmp_path: Path) -> None:
    config, warnings = load(tmp_path, LONGCAT_EXAMPLE, datasets=[DREAMBOOTH, TEXT_EMBEDS])
    assert config.flow_schedule_shift == "auto"
    assert (config.checkpointing_steps, config.optimizer, config.datasets[0].target_downsample_size) == (
        10,
        "adamw",
        1024,
    )
    assert config.validation_prompt is not None
    assert config.validation_prompt.startswith("\U0001f7eb is")
    assert warnings == {
        "ignored_speed": "attention_mechanism, quantize_via",
        "ignored_caches": warnings["ignored_caches"],
        "ignored_hub": "hub_model_id",
        "ignored_records": "validation_disable_unconditional",
        "option_without_effect": warnings["option_without_effect"],
    }


@pytest.mark.parametrize(
    ("shift", "auto", "becomes"),
    [(0, True, "auto"), (0, False, 1.0), (3, True, 3.0), (3, None, 3.0), (None, True, "auto"), ("auto", None, "auto")],
)
def test_the_shift_of_noise_levels(tmp_path: Path, shift: object, auto: object, becomes: object) -> None:
    given = {"flow_schedule_shift": shift, "flow_schedule_auto_shift": auto}
    config, _ = load(tmp_path, {name: value for name, value in given.items() if value is not None})
    assert config.flow_schedule_shift == becomes


UNTYPED = {name: value for name, value in LOCAL.items() if name != "dataset_type"}
EDITING = {
    "model_type": "lora", "model_family": "longcat_image", "model_flavour": "edit", "base_model_precision": "int8-quanto",
    "train_batch_size": 1, "gradient_checkpointing": True, "learning_rate": 5e-5, "validation_guidance": 4.5,
    "validation_num_inference_steps": 40, "validation_resolution": "768x768",
}  # fmt: skip
"""The options of SimpleTuner's quickstart for LongCat-Image-Edit, which links to references without their type."""


@pytest.mark.parametrize(
    ("given", "kind"),
    [({}, "reference_strict"), ({"conditioning_type": "reference_loose"}, "reference_loose"),
     ({"dataset_type": "conditioning", "conditioning_type": "reference_strict"}, "reference_strict")],
)  # fmt: skip
def test_the_example_for_editing_is_taken(tmp_path: Path, given: dict[str, object], kind: str) -> None:
    edits = LOCAL | {"id": "edit-images", "resolution": 768, "conditioning_data": ["ref-images"]}
    references = UNTYPED | {"id": "ref-images", "caption_strategy": None, "resolution": 768} | given
    config, _ = load(tmp_path, EDITING | {"data_backend_config": [edits, references]})
    assert references_of(config.datasets)["edit-images"].conditioning_type == kind
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"data_backend_config": [edits, references]})
    assert [(p.field, p.code) for p in caught.value.problems] == [
        ("data_backend_config.0.conditioning_data", "references_without_editing")
    ]


def test_captions_of_references_are_warned_of(tmp_path: Path) -> None:
    edits = LOCAL | {"id": "edits", "conditioning_data": "refs"}
    for strategy, codes in ((None, set()), ("textfile", {"reference_captions_unused"})):
        references = UNTYPED | {"id": "refs", "caption_strategy": strategy}
        _, warnings = load(tmp_path, {"model_flavour": "edit", "data_backend_config": [edits, references]})
        assert set(warnings) == codes


def test_validation_inputs_are_read_as_a_list_and_as_its_text(tmp_path: Path) -> None:
    given = [{"path": "/data/val/a.png", "prompt": "make it blue", "shortname": "blue"}]
    edits = LOCAL | {"id": "edits", "conditioning_data": "refs"}
    datasets = {"model_flavour": "edit", "data_backend_config": [edits, UNTYPED | {"id": "refs"}]}
    for value in (given, json.dumps(given)):
        config, _ = load(tmp_path, datasets | {"validation_input": value})
        assert [(one.path, one.prompt) for one in config.validation_input] == [
            (Path("/data/val/a.png"), "make it blue")
        ]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, datasets | {"validation_input": [{"path": "/data/val/a.png"}]})
    assert [p.field for p in caught.value.problems] == ["validation_input.0.prompt"]


def test_the_lokr_of_the_example_for_editing_is_taken_with_its_limit_of_gradients(tmp_path: Path) -> None:
    lycoris = {
        "bypass_mode": True, "algo": "lokr", "multiplier": 1.0, "full_matrix": True, "linear_dim": 10000, "linear_alpha": 1,
        "factor": 16, "apply_preset": {
            "target_module": ["LongCatImageTransformer2DModel"],
            "module_algo_map": {"LongCatImageTransformer2DModel": {"factor": 16}}},
    }  # fmt: skip
    options = {
        "base_model_precision": "int8-torchao", "grad_clip_method": "value", "flow_schedule_shift": 3,
        "lora_type": "lycoris", "lycoris_config": "lycoris.json", "train_batch_size": 3, "quantize_via": "cpu",
    }  # fmt: skip
    config, _ = load(tmp_path, options, lycoris=lycoris)
    assert (config.grad_clip_method, config.flow_schedule_shift) == ("value", 3.0)
    assert config.lycoris_config is not None
    assert config.lycoris_config.options_of("norm_out.linear") is not None


OF_OTHER_MODELS = {
    "flux_guidance_mode": "constant", "flux_lora_target": "all", "ltx_train_mode": "t2v", "sd3_t5_uncond_behaviour": "empty",
    "wan_validation_load_other_stage": True, "validation_num_video_frames": 81, "framerate": 16,
    "text_encoder_4_precision": "int4-quanto", "validation_guidance_real": 1.0, "minimax_h3_sparse_attention": "moba3d",
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (OF_OTHER_MODELS, "ignored_other_model"),
        ({"fuse_qkv_projections": True, "validation_torch_compile": True, "allow_tf32": True}, "ignored_speed"),
        ({"sdnq_group_size": 32, "context_parallel_comm_strategy": "alltoall"}, "ignored_part"),
        ({"validation_on_startup": True, "evaluation_type": "clip"}, "ignored_records"),
        ({"ignore_final_epochs": True, "gradient_precision": "fp32"}, "ignored_same"),
        ({"allow_dataset_oversubscription": True, "context_parallel_size": 1, "ema_validation": "ema_only", "use_ema": 1},
         "ignored_same"),
    ],
)  # fmt: skip
def test_options_that_change_nothing_here_are_ignored_with_their_reason(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    _, warnings = load(tmp_path, options)
    assert warnings == {reason: ", ".join(name for name in options if name != "use_ema")}


def test_other_names_of_adams_options(tmp_path: Path) -> None:
    config, _ = load(tmp_path, {"optimizer_beta1": 0.8, "optimizer_beta2": 0.95})
    assert (config.adam_beta1, config.adam_beta2) == (0.8, 0.95)


def test_a_secret_is_not_in_its_own_problem(tmp_path: Path) -> None:
    entry = {"id": "s", "type": "aws", "aws_bucket_name": "b", "aws_secret_access_key": "hush-hush"}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"data_backend_config": [entry]})
    assert "hush" not in repr(caught.value.problems)


def test_a_suggestion_means_the_same(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"data_backend_config": [LOCAL | {"image_embedz": 1, "repeat": 2}], "vae_cache_disabled": 1})
    hints = {problem.field: problem.details.get("nearest") for problem in caught.value.problems}
    assert hints == {
        "vae_cache_disabled": None,
        "data_backend_config.0.image_embedz": None,
        "data_backend_config.0.repeat": "repeats",
    }


@pytest.mark.parametrize("other", ["checkpoint_step_interval", "--checkpoint_step_interval"])
def test_a_later_source_wins_under_either_name(tmp_path: Path, other: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({other: 10, "validation_steps": 3}))
    config, _ = load_config(path, {"checkpointing_steps": 5, "validation_step_interval": 7})
    assert (config.checkpointing_steps, config.validation_steps) == (5, 7)


def test_arguments_win_over_the_environment_under_either_name(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"checkpointing_steps": 1, "adam_beta1": 0.5}')
    environment = {"checkpoint_step_interval": 10, "optimizer_beta1": 0.6, "validation_step_interval": 7}
    config, _ = load_config(path, environment, {"checkpointing_steps": 5, "validation_steps": 9})
    assert (config.checkpointing_steps, config.adam_beta1, config.validation_steps) == (5, 0.6, 9)


def test_two_names_with_two_values_in_one_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"checkpoint_step_interval": 10, "checkpointing_steps": 5})
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.value) == ("option_given_twice", "checkpointing_steps", 5)
    assert "given as checkpoint_step_interval too, with the value 10" in str(problem)
    assert load(tmp_path, {"checkpoint_step_interval": 10, "checkpointing_steps": 10})[0].checkpointing_steps == 10
