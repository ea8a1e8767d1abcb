"""SimpleTuner's dataloader files: the documented datasets, taken or refused by name."""

from pathlib import Path
from typing import Any

import pytest

from longcat.errors import ConfigError
from tests.trainer.config.simpletuner.test_options import DREAMBOOTH, LOCAL, TEXT_EMBEDS, load

FULL = {
    "id": "full", "type": "local", "instance_data_dir": "/data", "crop": False, "crop_aspect": "random",
    "crop_aspect_buckets": [0.33, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75], "resolution": 1.0, "resolution_type": "area",
    "minimum_image_size": 1.0, "disable_multiline_split": False, "vae_cache_clear_each_epoch": True, "probability": 1.0,
    "start_epoch": 1, "start_step": 0, "text_embeds": "alt", "image_embeds": "vae", "conditioning_image_embeds": "more",
}  # fmt: skip
TAKEN: dict[str, dict[str, Any]] = {
    "the first example": DREAMBOOTH,
    "every option": FULL,
    "a limit": LOCAL | {"max_num_samples": 1000},
    "no rejected picture is deleted": LOCAL | {"delete_nsfw_images": True, "delete_unwanted_images": False},
    "grounding that is off": LOCAL | {"grounding": {"enabled": False}},
    "a schedule that is none": LOCAL | {"start_epoch": 1, "start_step": 0, "end_epoch": None, "end_step": None},
    "random crops": LOCAL | {"resolution": 1024, "resolution_type": "pixel", "crop": True, "crop_aspect": "random",
                             "crop_aspect_buckets": [1.0, 0.5, 2.0], "max_upscale_threshold": 0.2},
    "discovery": LOCAL | {"metadata_backend": "discovery", "skip_file_discovery": "", "hash_filenames": True,
                          "preserve_data_backend_cache": False, "metadata_update_interval": 3600},
    "JSON lines as a table": LOCAL | {
        "caption_strategy": "parquet", "metadata_backend": "parquet", "parquet": {
            "path": "rows.jsonl", "filename_column": "id", "caption_column": "text", "width_column": "w",
            "height_column": "h", "identifier_includes_extension": True}},
    "shuffled tags": LOCAL | {"caption_shuffle": {"enable": True, "count": 3, "seed": 42, "split_on": "comma",
                                                  "position_start": 1, "include_original": True}},
    "held-out pictures": LOCAL | {"dataset_type": "eval"},
    "caches of other programs": LOCAL | {
        "cache_file_suffix": "sdxl", "disable_vae_cache": True, "vae_cache_scan_behaviour": "recreate", "max_workers": 8,
        "read_batch_size": 4, "image_processing_batch_size": 16, "ignore_epochs": True, "s2v_datasets": []},
    "on demand": LOCAL | {"vae_cache_ondemand": True, "text_cache_ondemand": True},
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "video": (LOCAL | {"dataset_type": "video", "video": {"num_frames": 125}}, {"dataset_type": "video_unsupported"}),
    "audio": (LOCAL | {"dataset_type": "audio", "audio": {"channels": 2}}, {"dataset_type": "audio_unsupported"}),
    "a pair": (LOCAL | {"conditioning_data": ["ref"]}, {"conditioning_data": "conditioning_data_missing"}),
    "a second picture of nothing": (
        LOCAL | {"dataset_type": "conditioning", "conditioning_type": "reference_strict"},
        {"id": "masks_of_no_dataset"},
    ),
    "a second picture among the first": (
        LOCAL | {"conditioning_type": "reference_loose"},
        {"conditioning_type": "option_of_masks"},
    ),
    "control signals": (
        LOCAL | {"dataset_type": "conditioning", "conditioning_type": "controlnet"},
        {"conditioning_type": "conditioning_unsupported"},
    ),
    "two pictures of a table": (
        LOCAL | {"composite_image_config": {"enabled": True}},
        {"composite_image_config": "simpletuner_dataset_option"},
    ),
    "an effect": (LOCAL | {"lora_path": "/x.safetensors"}, {"lora_path": "simpletuner_dataset_option"}),
    "conditioning of no kind": (
        LOCAL | {"dataset_type": "conditioning"},
        {"conditioning_type": "conditioning_type_missing"},
    ),
    "generated pairs": (LOCAL | {"conditioning": [{"type": "canny"}]}, {"conditioning": "made_pairs_unsupported"}),
    "a curriculum": (LOCAL | {"start_step": 300}, {"start_step": "dataset_schedule_unsupported"}),
    "the end of one": (LOCAL | {"end_step": 300}, {"end_step": "dataset_schedule_unsupported"}),
    "boxes": (LOCAL | {"grounding": {"enabled": True}}, {"grounding": "grounding_unsupported"}),
    "Parquet": (
        LOCAL | {"caption_strategy": "parquet", "parquet": {"path": "x.parquet", "caption_column": "c"}},
        {"parquet": "parquet_unsupported"},
    ),
    "a table under another name": (
        LOCAL | {"caption_strategy": "csv", "csv_file": "rows.csv", "csv_caption_column": "text"},
        {"csv_file": "dataset_option_renamed", "csv_caption_column": "dataset_option_renamed"},
    ),
    "addresses in a table": (
        {"id": "c", "type": "csv", "csv_file": "/l.csv", "csv_caption_column": "caption", "caption_strategy": "csv"},
        {"type": "csv_dataset_unsupported"},
    ),
    "a hub's dataset": (
        {"id": "h", "type": "huggingface", "dataset_name": "some/thing", "huggingface": {"image_column": "image"}},
        {"type": "hub_dataset_unsupported"},
    ),
    "shards": ({"id": "w", "type": "webshart"}, {"type": "webshart_unsupported"}),
    "a slider": (LOCAL | {"slider_strength": 0.5}, {"slider_strength": "slider_unsupported"}),
    "faces": (LOCAL | {"crop_style": "face"}, {"crop_style": "literal_error"}),
    "tags with spaces": (
        LOCAL | {"caption_shuffle": {"enable": True, "split_on": "space"}},
        {"caption_shuffle": "shuffle_separator_unsupported"},
    ),
    "a batch of its own": (LOCAL | {"train_batch_size": 4}, {"train_batch_size": "dataset_batch_unsupported"}),
    "a key in the file": (
        {"id": "s", "type": "aws", "aws_bucket_name": "b", "aws_secret_access_key": "s"},
        {"aws_secret_access_key": "secret_in_config"},
    ),
}


@pytest.mark.parametrize("entry", TAKEN.values(), ids=TAKEN)
def test_a_documented_dataset_is_taken(tmp_path: Path, entry: dict[str, Any]) -> None:
    config, _ = load(tmp_path, {"data_backend_config": [TEXT_EMBEDS, entry, {"id": "off", "disabled": True}]})
    assert [dataset.id for dataset in config.datasets] == [entry["id"]]


def test_tables_and_shuffling_are_translated(tmp_path: Path) -> None:
    table, shuffled = TAKEN["JSON lines as a table"], TAKEN["shuffled tags"]
    (first, second), _ = (
        (loaded := load(tmp_path, {"data_backend_config": [table, shuffled | {"id": "b"}]}))[0].datasets,
        loaded[1],
    )
    assert (first.caption_strategy, first.caption_file, first.filename_column, first.caption_column) == (
        "jsonl", "rows.jsonl", "id", "text",
    )  # fmt: skip
    assert (second.shuffle_tags, second.keep_tags) == (True, 1)


@pytest.mark.parametrize(("entry", "codes"), REFUSED.values(), ids=REFUSED)
def test_a_documented_dataset_is_refused_by_name(tmp_path: Path, entry: dict[str, Any], codes: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"data_backend_config": [TEXT_EMBEDS, entry]})
    found = {problem.field: problem.code for problem in caught.value.problems}
    assert found == {f"data_backend_config.1.{name}": code for name, code in codes.items()}
    assert all(problem.remedy for problem in caught.value.problems)


def test_regularisation_data_are_taken_beside_others(tmp_path: Path) -> None:
    prior = LOCAL | {"id": "men", "is_regularization_data": True, "repeats": 0}
    config, _ = load(tmp_path, {"data_backend_config": [LOCAL | {"repeats": 100}, prior, TEXT_EMBEDS]})
    assert [dataset.is_regularisation_data for dataset in config.datasets] == [False, True]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"data_backend_config": [prior, TEXT_EMBEDS]})
    assert [(p.field, p.code) for p in caught.value.problems] == [("data_backend_config", "only_regularisation_data")]


def test_the_documented_masked_loss_is_taken(tmp_path: Path) -> None:
    sizes = {
        "resolution": 1024, "minimum_image_size": 1024, "maximum_image_size": 1024, "target_downsample_size": 1024,
        "crop": True, "crop_aspect": "square", "crop_style": "center", "resolution_type": "pixel_area", "type": "local",
    }  # fmt: skip
    pictures = sizes | {
        "id": "dreambooth-data", "dataset_type": "image", "conditioning_data": ["dreambooth-conditioning"],
        "instance_data_dir": "/data/dreambooth", "cache_dir_vae": "/cache", "caption_strategy": "instanceprompt",
        "instance_prompt": "an dreambooth", "metadata_backend": "discovery",
    }  # fmt: skip
    masks = sizes | {
        "id": "dreambooth-conditioning", "dataset_type": "conditioning", "conditioning_type": "mask",
        "instance_data_dir": "/data/dreambooth_mask",
    }  # fmt: skip
    config, _ = load(tmp_path, {"data_backend_config": [pictures, masks, TEXT_EMBEDS], "masked_loss_probability": 0.9})
    assert (config.datasets[0].conditioning_data, config.masked_loss_probability) == ("dreambooth-conditioning", 0.9)


def test_a_pair_that_is_refused_has_one_problem(tmp_path: Path) -> None:
    pair = LOCAL | {"id": "ref", "dataset_type": "conditioning", "conditioning_type": "controlnet"}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {"data_backend_config": [LOCAL | {"conditioning_data": ["ref"]}, pair]})
    assert [(p.field, p.code) for p in caught.value.problems] == [
        ("data_backend_config.1.conditioning_type", "conditioning_unsupported")
    ]
