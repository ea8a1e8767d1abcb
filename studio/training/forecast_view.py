"""The memory plan as the Train page shows it."""

from collections.abc import Mapping
from typing import Any

from trainer.config.options import TrainConfig
from trainer.memory.forecast import Forecast


def figures(forecast: Forecast) -> dict[str, Any]:
    """Return the template's variables of a plan; names of phases and parts are keys of the locale."""
    plan = forecast.plan
    parts = {
        "base": plan.base_bytes, "adapter": plan.adapter_bytes, "gradients": plan.gradient_bytes,
        "optimizer": plan.optimizer_bytes, "ema": plan.ema_bytes, "activations": plan.activation_bytes,
        "workspace": plan.workspace_bytes, "text_encoder": plan.text_encoder_bytes, "encoding": plan.vae_encode_bytes,
        "decoding": plan.vae_decode_bytes if plan.workload.validation else 0,
    }  # fmt: skip
    return {
        "usable": forecast.usable_bytes,
        "fits": forecast.fits(plan),
        "phases": [(phase.replace(" ", "_"), size) for phase, size in plan.peak_bytes.items()],
        "parts": [(name, size) for name, size in parts.items() if size],
        "others": [
            {
                "precision": str(other.workload.precision),
                "every": other.workload.checkpointing or 0,
                "most_bytes": other.most_bytes,
                "fits": forecast.fits(other),
            }
            for other in forecast.others
        ],
    }


def decided_settings(config: TrainConfig, forecast: Forecast) -> Mapping[str, Any] | None:
    """Return the settings that stand for ``auto`` on the device that is planned for; None if no option is auto."""
    load = forecast.plan.workload
    settings = {
        "precision": str(load.precision) if config.base_model_precision == "auto" else None,
        "text_encoder": str(load.text_encoder_precision) if config.text_encoder_1_precision == "auto" else None,
        "every": (load.checkpointing or 0) if config.gradient_checkpointing == "auto" else None,
    }
    return None if all(value is None for value in settings.values()) else settings
