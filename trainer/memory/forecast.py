"""The forecast of a training on a device: it decides every ``auto``, and ``lithograph plan`` shows it. Reads no weights.

For a GPU of another machine no torch is imported, so that a web page can plan for a cluster.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from longcat.errors import ConfigError
from longcat.model.flavour import Description, Flavour, structure
from longcat.model.memory.device import device_bytes, readable, usable_bytes
from longcat.model.precision import Precision
from trainer.config.links import editing_problems
from trainer.config.options import TrainConfig
from trainer.config.reading.sizes import width_and_height
from trainer.config.targets import check_fit
from trainer.data.buckets import Bucket, bucket_choices
from trainer.memory.alternatives import alternatives, choose, fits
from trainer.memory.plan import Plan, plan
from trainer.memory.workload import Workload

if TYPE_CHECKING:
    import torch

_DTYPES = {"auto": "auto", "no": "float32", "bf16": "bfloat16", "fp16": "float16"}


def compute_dtype(config: TrainConfig, device: "torch.device") -> "torch.dtype":
    """Return the type that ``mixed_precision`` names on this device."""
    from longcat.model.device.choice import parse_dtype

    return parse_dtype(_DTYPES[config.mixed_precision], device)


def decide(config: TrainConfig, flavour: Flavour, device: "torch.device") -> TrainConfig:
    """Return the configuration with every ``auto`` decided.

    Raises ``ConfigError`` with the settings to lower if nothing fits.
    """
    if not _has_auto(config):
        return config
    return _decided(config, choose(_workload(config, flavour, _this_machine(config, device)), device_bytes(device)))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The memory plan of a training on a device, and the plans of other settings."""

    device: str
    """Name of the device, to be shown."""
    device_bytes: int
    """Memory of the device."""
    plan: Plan
    others: tuple[Plan, ...]
    """Plans with other precisions and checkpointing."""

    @property
    def usable_bytes(self) -> int:
        """The memory of the device that a plan may fill."""
        return usable_bytes(self.device_bytes)

    def fits(self, planned: Plan) -> bool:
        """Return True if the plan fits the device."""
        return fits(planned, self.device_bytes)

    def text(self) -> str:
        """Return the forecast as lines for a terminal."""
        lines = [
            self.plan.table(),
            "",
            f"{self.device} has {readable(self.device_bytes)}, of which a plan may fill {readable(self.usable_bytes)}; this "
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
        """Return the forecast as a JSON object, sizes in bytes; ``settings`` are options with every ``auto`` decided."""
        load = self.plan.workload
        return {
            "device": self.device,
            "device_bytes": self.device_bytes,
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
    """Plan for the configured device, or for a CUDA GPU with ``gpu_bytes``, which need not be in this machine.

    With ``cpu_threads`` the plan is for this machine's CPU with that many threads, and torch is not imported.
    ``processes`` is the number that ``fsdp_enable`` splits the base over. Of another model on the hub than the published
    flavours, only the JSON files are downloaded. Raises ``ConfigError`` if no setting for ``auto`` fits.
    """
    model = structure(config.flavour, revision=config.revision)
    if problems := list(editing_problems(config, config.datasets, edits=model.settings.edits)):
        raise ConfigError.of(problems)
    check_fit(config, model.folder)
    if gpu_bytes is None and cpu_threads is not None:
        dtype = {"auto": "float32"}.get(config.mixed_precision, _DTYPES[config.mixed_precision])
        name, hardware, total = "cpu", _Hardware(kind="cpu", dtype=dtype, threads=cpu_threads), device_bytes("cpu")
    elif gpu_bytes is None:
        from longcat.model.device.choice import parse_device

        device = parse_device(config.device)
        name, hardware, total = str(device), _this_machine(config, device), device_bytes(device)
    else:
        dtype = {"auto": "bfloat16"}.get(config.mixed_precision, _DTYPES[config.mixed_precision])
        name, hardware, total = "a GPU", _Hardware(kind="cuda", dtype=dtype, threads=1), gpu_bytes
    workload = replace(_workload(config, model, hardware), parts=processes if config.fsdp_enable else 1)
    if _has_auto(config):
        workload = choose(workload, total)
    return Forecast(device=name, device_bytes=total, plan=plan(workload), others=alternatives(workload))


@dataclass(frozen=True, kw_only=True)
class _Hardware:
    kind: str
    """cpu, cuda or mps."""
    dtype: str
    """Compute type."""
    threads: int
    """Threads that encode captions at once."""


def _this_machine(config: TrainConfig, device: "torch.device") -> _Hardware:
    import torch

    dtype = str(compute_dtype(config, device)).removeprefix("torch.")
    return _Hardware(kind=device.type, dtype=dtype, threads=torch.get_num_threads() if device.type == "cpu" else 1)


def _has_auto(config: TrainConfig) -> bool:
    return "auto" in (config.base_model_precision, config.text_encoder_1_precision, config.gradient_checkpointing)


def _decided(config: TrainConfig, chosen: Workload) -> TrainConfig:
    changes = _settings(chosen) | {"text_encoder_1_precision": Precision(chosen.text_encoder_precision).value}
    if not chosen.checkpointing:
        changes["gradient_checkpointing_interval"] = config.gradient_checkpointing_interval
    return config.model_copy(update=changes)


def _settings(load: Workload) -> dict[str, Any]:
    """Return a workload's settings under the configuration's names."""
    return {
        "base_model_precision": Precision(load.precision).value,
        "gradient_checkpointing": bool(load.checkpointing),
        "gradient_checkpointing_interval": load.checkpointing or 1,
    }


def _workload(config: TrainConfig, model: Flavour | Description, hardware: _Hardware) -> Workload:
    largest = max(_sizes(config), key=lambda size: size.width_px * size.height_px)
    checkpointing: int | Literal["auto"] = "auto"
    if isinstance(config.gradient_checkpointing, bool):
        checkpointing = config.gradient_checkpointing_interval if config.gradient_checkpointing else 0
    return Workload(
        flavour_folder=model.folder,
        precision=_precision(config.base_model_precision),
        text_encoder_precision=_precision(config.text_encoder_1_precision),
        dtype=hardware.dtype,
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
        offload_type=config.group_offload_type,
        blocks_per_group=config.group_offload_blocks_per_group,
        validation=not config.validation_disable,
        device=hardware.kind,
        lora_dropout=config.lora_dropout,
        use_dora=config.use_dora,
        lycoris=config.lycoris_config,
        vae_batch=config.vae_batch_size,
        prior=any(dataset.is_regularisation_data for dataset in config.datasets),
        text_workers=hardware.threads,
        edits=model.settings.edits,
    )


def _sizes(config: TrainConfig) -> list[Bucket]:
    """Return every size of a training or validation picture."""
    sizes = [Bucket(width_px=w, height_px=h) for w, h in map(width_and_height, config.validation_resolution)]
    for dataset in (dataset for dataset in config.datasets if dataset.dataset_type != "conditioning"):
        sizes += bucket_choices(
            dataset,
            resolution=config.resolution,
            resolution_type=config.resolution_type,
            alignment_px=config.aspect_bucket_alignment,
        )
    if not sizes:  # no dataset yet
        for size in config.resolution:
            width, height = width_and_height(size) if isinstance(size, str) else (int(size), int(size))
            sizes.append(Bucket(width_px=width, height_px=height))
    return sizes


def _precision(name: str) -> Precision | Literal["auto"]:
    return "auto" if name == "auto" else Precision(name)
