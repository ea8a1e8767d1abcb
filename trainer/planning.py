"""Whether a training fits: the memory plan decides what is ``auto``, and ``lithograph plan`` shows it. Reads no weights.

For a GPU that is not here, no torch is imported: a web page can plan for a cluster.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from longcat.flavour import Description, Flavour, describe
from longcat.precision import Precision
from trainer.buckets import Bucket, bucket_choices
from trainer.choice import alternatives, choose, fits
from trainer.config import TrainConfig
from trainer.dataset_config import width_and_height
from trainer.memory import Plan, Workload, plan, readable
from trainer.room import device_bytes, usable_bytes

if TYPE_CHECKING:
    import torch

_DTYPES = {"auto": "auto", "no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def compute_dtype(config: TrainConfig, device: "torch.device") -> "torch.dtype":
    """What ``mixed_precision`` means on this device."""
    from longcat.loading import parse_dtype

    return parse_dtype(_DTYPES[config.mixed_precision], device)


def decide(config: TrainConfig, flavour: Flavour, device: "torch.device") -> TrainConfig:
    """The configuration with every ``auto`` decided. Raises ``ConfigError`` naming what to lower if nothing fits."""
    if not _has_auto(config):
        return config
    return _decided(config, choose(_workload(config, flavour, _here(config, device)), device_bytes(device)))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a training takes, whether the device has it, and what else could be chosen."""

    device: str
    """Its name, for people."""
    room_bytes: int
    """That it has."""
    plan: Plan
    others: tuple[Plan, ...]
    """Other precisions and ways of checkpointing."""

    @property
    def usable_bytes(self) -> int:
        """What of the room a plan may fill."""
        return usable_bytes(self.room_bytes)

    def fits(self, planned: Plan) -> bool:
        """Whether the device has room for it."""
        return fits(planned, self.room_bytes)

    def text(self) -> str:
        """For a terminal."""
        lines = [
            self.plan.table(),
            "",
            f"{self.device} has {readable(self.room_bytes)}, of which a plan may fill {readable(self.usable_bytes)}; this "
            f"takes {readable(self.plan.most_bytes)}: {'it fits' if self.fits(self.plan) else 'it does not fit'}",
            "",
            "other choices:",
        ]
        for other in self.others:
            every = other.workload.checkpointing
            how = "off" if not every else "every block" if every == 1 else f"every {every} blocks"
            lines.append(
                f"  base_model_precision {Precision(other.workload.precision).value:13} gradient_checkpointing {how:15} "
                f"{readable(other.most_bytes):>10}{'' if self.fits(other) else '  too much'}"
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For programs; sizes in bytes. ``settings`` are options of the configuration, every ``auto`` decided."""
        load = self.plan.workload
        return {
            "device": self.device,
            "device_bytes": self.room_bytes,
            "usable_bytes": self.usable_bytes,
            "settings": _settings(load) | {"text_encoder_1_precision": Precision(load.text_encoder_precision).value},
            "batch": load.batch,
            "width_px": load.width_px,
            "height_px": load.height_px,
            "prompt_tokens": load.prompt_tokens,
            "dtype": load.dtype,
            "parts": self.plan.parts,
            "phases": dict(self.plan.peak_bytes),
            **self._verdict(self.plan),
            "alternatives": [{"settings": _settings(o.workload), **self._verdict(o)} for o in self.others],
        }

    def _verdict(self, planned: Plan) -> dict[str, Any]:
        return {"most_bytes": planned.most_bytes, "fits": self.fits(planned)}


def forecast(
    config: TrainConfig, *, gpu_bytes: int | None = None, cpu_threads: int | None = None, processes: int = 1
) -> Forecast:
    """The plan for the configured device, or for a CUDA GPU of so much memory that need not be here.

    With ``cpu_threads`` it is for this machine's CPU, computing with so many, and needs no torch to know the device.
    ``processes``: over which ``fsdp_enable`` splits the base. Of a flavour on the hub, only the descriptions are
    downloaded. Raises ``ConfigError`` if what is ``auto`` cannot fit.
    """
    model = describe(config.flavour, revision=config.revision)
    if gpu_bytes is None and cpu_threads is not None:
        dtype = {"auto": "float32"}.get(config.mixed_precision, _DTYPES[config.mixed_precision])
        name, there, room = "cpu", _Device(kind="cpu", dtype=dtype, threads=cpu_threads), device_bytes("cpu")
    elif gpu_bytes is None:
        from longcat.loading import parse_device

        device = parse_device(config.device)
        name, there, room = str(device), _here(config, device), device_bytes(device)
    else:
        dtype = {"auto": "bfloat16"}.get(config.mixed_precision, _DTYPES[config.mixed_precision])
        name, there, room = "a GPU", _Device(kind="cuda", dtype=dtype, threads=1), gpu_bytes
    workload = replace(_workload(config, model, there), parts=processes if config.fsdp_enable else 1)
    if _has_auto(config):
        workload = choose(workload, room)
    return Forecast(device=name, room_bytes=room, plan=plan(workload), others=alternatives(workload))


@dataclass(frozen=True, kw_only=True)
class _Device:
    kind: str
    """cpu, cuda or mps."""
    dtype: str
    """What is computed in."""
    threads: int
    """That encode captions at once."""


def _here(config: TrainConfig, device: "torch.device") -> _Device:
    import torch

    dtype = str(compute_dtype(config, device)).removeprefix("torch.")
    return _Device(kind=device.type, dtype=dtype, threads=torch.get_num_threads() if device.type == "cpu" else 1)


def _has_auto(config: TrainConfig) -> bool:
    return "auto" in (config.base_model_precision, config.text_encoder_1_precision, config.gradient_checkpointing)


def _decided(config: TrainConfig, chosen: Workload) -> TrainConfig:
    changes = _settings(chosen) | {"text_encoder_1_precision": Precision(chosen.text_encoder_precision).value}
    if not chosen.checkpointing:
        changes["gradient_checkpointing_interval"] = config.gradient_checkpointing_interval
    return config.model_copy(update=changes)


def _settings(load: Workload) -> dict[str, Any]:
    """A workload's choices as the configuration names them."""
    return {
        "base_model_precision": Precision(load.precision).value,
        "gradient_checkpointing": bool(load.checkpointing),
        "gradient_checkpointing_interval": load.checkpointing or 1,
    }


def _workload(config: TrainConfig, model: Flavour | Description, there: _Device) -> Workload:
    largest = max(_sizes(config), key=lambda size: size.width_px * size.height_px)
    checkpointing: int | Literal["auto"] = "auto"
    if isinstance(config.gradient_checkpointing, bool):
        checkpointing = config.gradient_checkpointing_interval if config.gradient_checkpointing else 0
    return Workload(
        flavour_folder=model.folder,
        precision=_precision(config.base_model_precision),
        text_encoder_precision=_precision(config.text_encoder_1_precision),
        dtype=there.dtype,
        lora_rank=config.lora_rank,
        lora_targets=config.lora_targets,
        optimizer=config.optimizer,
        ema=config.use_ema,
        batch=config.train_batch_size,
        width_px=largest.width_px,
        height_px=largest.height_px,
        prompt_tokens=model.settings.max_prompt_tokens,
        checkpointing=checkpointing,
        offload=config.enable_group_offload,
        validation=not config.validation_disable,
        device=there.kind,
        lora_dropout=config.lora_dropout,
        use_dora=config.use_dora,
        vae_batch=config.vae_batch_size,
        text_workers=there.threads,
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
