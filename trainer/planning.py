"""Whether a training fits: the memory plan decides what is ``auto``, and ``lithograph plan`` shows it. Reads no weights."""

from typing import Any

import torch

from longcat.flavour import Flavour, resolve
from longcat.loading import parse_device, parse_dtype
from longcat.precision import Precision
from trainer.buckets import bucket_choices
from trainer.config import TrainConfig
from trainer.dataset_config import DatasetConfig

DTYPES = {"auto": "auto", "no": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""SimpleTuner's names of ``mixed_precision`` by torch's."""


def decide(config: TrainConfig, flavour: Flavour, device: torch.device, dtype: torch.dtype) -> TrainConfig:
    """The configuration with every ``auto`` decided. Raises ``ConfigError`` if nothing fits."""
    if "auto" not in (config.base_model_precision, config.text_encoder_1_precision, config.gradient_checkpointing):
        return config
    from trainer.memory import choose, device_bytes

    chosen = choose(_workload(config, flavour, dtype), device_bytes(device))
    changes: dict[str, Any] = {
        "base_model_precision": chosen.precision.value,
        "text_encoder_1_precision": chosen.text_encoder_precision.value,
        "gradient_checkpointing": bool(chosen.checkpointing),
    }
    return config.model_copy(update=changes)
