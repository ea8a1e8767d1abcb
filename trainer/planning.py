"""Whether a training fits: the memory plan decides what is ``auto``, and ``lithograph plan`` shows it. Reads no weights."""

from typing import Any, Literal

import torch

from longcat.flavour import Flavour, resolve
from longcat.loading import parse_device, parse_dtype
from longcat.precision import Precision
from trainer.buckets import Bucket, bucket_choices
from trainer.config import TrainConfig
from trainer.dataset_config import width_and_height
from trainer.memory import Workload, alternatives, choose, device_bytes, fits, plan

_DTYPES = {"auto": "auto", "no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What ``mixed_precision`` means on this device."""
    return parse_dtype(_DTYPES[config.mixed_precision], device)


def decide(config: TrainConfig, flavour: Flavour, device: torch.device) -> TrainConfig:
    """The configuration with every ``auto`` decided. Raises ``ConfigError`` naming what to lower if nothing fits."""
    if "auto" not in (config.base_model_precision, config.text_encoder_1_precision, config.gradient_checkpointing):
        return config
    chosen = choose(_workload(config, flavour, device), device_bytes(device))
    changes: dict[str, Any] = {
        "base_model_precision": Precision(chosen.precision).value,
        "text_encoder_1_precision": Precision(chosen.text_encoder_precision).value,
        "gradient_checkpointing": bool(chosen.checkpointing),
        "gradient_checkpointing_interval": chosen.checkpointing or config.gradient_checkpointing_interval,
    }
    return config.model_copy(update=changes)


def describe_plan(config: TrainConfig) -> str:
    """The plan as a table, what else could be chosen, and whether it fits this machine."""
    device = parse_device(config.device)
    flavour = resolve(config.flavour, revision=config.revision)
    room = device_bytes(device)
    chosen = _workload(decide(config, flavour, device), flavour, device)
    made = plan(chosen)
    lines = [
        made.table(),
        "",
        f"{device} has {room / 2**30:.1f} GiB; this takes {made.most_bytes / 2**30:.1f}: "
        f"{'it fits' if fits(made, room) else 'it does not fit'}",
        "",
        "other choices:",
    ]
    for other in alternatives(chosen):
        every = other.workload.checkpointing
        how = "off" if not every else "every block" if every == 1 else f"every {every} blocks"
        lines.append(
            f"  base_model_precision {Precision(other.workload.precision).value:13} gradient_checkpointing {how:15} "
            f"{other.most_bytes / 2**30:6.1f} GiB{'' if fits(other, room) else '  too much'}"
        )
    return "\n".join(lines)


def _workload(config: TrainConfig, flavour: Flavour, device: torch.device) -> Workload:
    largest = max(_sizes(config), key=lambda size: size.width_px * size.height_px)
    checkpointing: int | Literal["auto"] = "auto"
    if isinstance(config.gradient_checkpointing, bool):
        checkpointing = config.gradient_checkpointing_interval if config.gradient_checkpointing else 0
    return Workload(
        flavour_folder=flavour.folder,
        precision=_precision(config.base_model_precision),
        text_encoder_precision=_precision(config.text_encoder_1_precision),
        dtype=str(compute_dtype(config, device)).removeprefix("torch."),
        lora_rank=config.lora_rank,
        lora_targets=config.lora_targets,
        optimizer=config.optimizer,
        ema=config.use_ema,
        batch=config.train_batch_size,
        width_px=largest.width_px,
        height_px=largest.height_px,
        prompt_tokens=flavour.settings.max_prompt_tokens,
        checkpointing=checkpointing,
        offload=config.enable_group_offload,
        validation=not config.validation_disable,
        device=device.type,
        lora_dropout=config.lora_dropout,
        vae_batch=config.vae_batch_size,
        text_workers=torch.get_num_threads() if device.type == "cpu" else 1,
    )


def _sizes(config: TrainConfig) -> list[Bucket]:
    """Every size that may be trained on or drawn."""
    sizes = [Bucket(width_px=w, height_px=h) for w, h in map(width_and_height, config.validation_resolution)]
    for dataset in config.datasets:
        sizes += bucket_choices(
            dataset,
            resolution=config.resolution,
            resolution_type=config.resolution_type,
            alignment_px=config.aspect_bucket_alignment,
        )
    if not sizes:
        side = int(max(number for number in config.resolution if isinstance(number, float)))
        sizes.append(Bucket(width_px=side, height_px=side))
    return sizes


def _precision(name: str) -> Precision | Literal["auto"]:
    return "auto" if name == "auto" else Precision(name)
