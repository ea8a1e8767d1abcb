"""Options of trainings and datasets, likely or strange."""

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.values.strange import (
    INTEGERS,
    NUMBERS,
    SCALARS,
    TEXTS,
    VALUES,
    changed,
    one_of_these,
)
from trainer.config.dataset_options import DatasetConfig
from trainer.config.options import TrainConfig

SIZES = st.one_of(
    NUMBERS,
    one_of_these(
        [
            "1024",
            "128x128",
            "1x1",
            "0x64",
            "64x",
            "x",
            "1e3",
            "nan",
            "1024x1024,768x768",
            "9" * 5_000 + "x1",
            ",",
            "-1",
            "1×1",
        ]
    ),
    st.lists(st.one_of(NUMBERS, TEXTS), max_size=3),
)
DATASET = {"id": "cats", "type": "local", "instance_data_dir": ".", "caption_strategy": "textfile", "resolution": 64}
DATASET_VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(DatasetConfig.model_fields, SCALARS),
    "type": st.sampled_from(["local", "aws", "huggingface"]),
    "instance_data_dir": st.one_of(TEXTS, one_of_these(["s3://", "s3://bucket/prefix", "s3:///x", ".", "~"])),
    "resolution": SIZES,
    "crop_aspect": st.sampled_from(["square", "closest", "preserve"]),
    "resolution_type": st.sampled_from(["pixel", "area", "pixel_area"]),
    "alpha_colour": one_of_these(["#ffffff", "#fff", "white", "#ffffff\n"]),
}
OPTIONS = {
    "model_flavour": "embedded",
    "instance_data_dir": ".",
    "resolution": 128,
    "learning_rate": 1e-3,
    "lora_rank": 4,
}
OPTION_VALUES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(TrainConfig.model_fields, SCALARS),
    "resolution": SIZES,
    "validation_resolution": SIZES,
    "lora_rank": INTEGERS,
    "max_train_steps": INTEGERS,
    "data_backend_config": st.one_of(st.lists(changed(DATASET, DATASET_VALUES), max_size=2), TEXTS, VALUES),
    "base_model_precision": one_of_these(["int8-quanto", "auto", "int9", "no_change"]),
    "adapter_name": one_of_these(["ink", "ink@1", "ink\n", "Ink", "a" * 64, ""]),
}
OBJECTS = changed(OPTIONS, OPTION_VALUES)
