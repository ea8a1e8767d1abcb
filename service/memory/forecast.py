"""The memory plan of ``lithograph serve --plan`` for a device of this machine, or for a GPU that is elsewhere."""

from dataclasses import dataclass
from typing import Any

from longcat.errors import DeviceError
from longcat.model.flavour import structure
from longcat.model.memory.device import free_bytes, readable, usable_bytes
from service.config import ServiceConfig
from service.memory.choice import Choice, GivenSettings, check_format, choose
from service.memory.plan import ServingPlan
from service.memory.settings import words, workload_of


@dataclass(frozen=True, kw_only=True)
class ServingForecast:
    """The settings that a configuration takes on a GPU, and their memory."""

    device: str
    """Name of the device, to be shown."""
    choice: Choice

    def text(self) -> str:
        """Return the forecast as lines for a terminal."""
        made, usable = self.choice.plan, self.choice.usable_bytes
        lines = [words(made), *(f"  {name:<46}{readable(size):>12}" for name, size in made.parts.items())]
        lines.append("most at once, by phase")
        lines += [f"  {phase:<46}{readable(size):>12}" for phase, size in made.peak_bytes.items()]
        verdict = "it fits" if self.choice.fits else "requests wait for memory"
        lines += [
            "",
            f"{readable(usable)} of {self.device} can be used; this takes {readable(made.most_bytes)}: {verdict}",
        ]
        if self.choice.others:
            lines += ["", "also fits:", *(f"  {words(other)}" for other in self.choice.others)]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the forecast as a JSON object, sizes in bytes."""
        made = self.choice.plan
        return {
            "device": self.device,
            "usable_bytes": self.choice.usable_bytes,
            "settings": _settings(made),
            "dtype": made.workload.dtype,
            "parts": made.parts,
            "phases": made.peak_bytes,
            "most_bytes": made.most_bytes,
            "fits": self.choice.fits,
            "alternatives": [
                {"settings": _settings(other), "most_bytes": other.most_bytes} for other in self.choice.others
            ],
        }


def forecast(config: ServiceConfig, *, gpu_bytes: int | None = None) -> ServingForecast:
    """Plan for the configured CUDA device, or for a GPU with ``gpu_bytes``, which need not be in this machine.

    For a GPU elsewhere no torch is imported; of a model on the hub, at most its JSON files are downloaded. Raises
    ``ConfigError`` if nothing fits, and ``DeviceError`` where there is neither a CUDA device nor ``gpu_bytes``.
    """
    model = config.engines[0]
    described = structure(model.flavour, revision=model.revision)
    workload = workload_of(
        described,
        dtype="bfloat16" if model.dtype == "auto" else model.dtype,
        has_adapters=config.adapters is not None,
        max_pixels=config.max_pixels,
    )
    given = GivenSettings.of(model, config.adapters, config.max_rows)
    check_format(given)
    name, usable = ("a GPU", usable_bytes(gpu_bytes)) if gpu_bytes is not None else _device(model.device)
    return ServingForecast(device=name, choice=choose(given, workload, usable))


def _device(name: str) -> tuple[str, int]:
    """Return the name of a CUDA device of this machine, and its memory that can be used."""
    from longcat.model.device.choice import parse_device

    device = parse_device(name)
    if device.type != "cuda":
        raise DeviceError(
            "plan_without_gpu",
            "the plan is for a CUDA device, and this is {device}",
            remedy="give the memory of one with --gpu-gib",
            field="--device",
            value=name,
            device=str(device),
        )
    return str(device), free_bytes(device)


def _settings(made: ServingPlan) -> dict[str, Any]:
    """Return a plan's settings under the options' names."""
    load = made.workload
    return {
        "precision": load.precision.value,
        "text_encoder_precision": load.text_encoder_precision.value,
        "offload": load.offload.value,
        "max_rows": load.rows,
        "adapter_slots": load.slots,
        "adapter_rank": load.rank,
    }
