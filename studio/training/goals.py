"""Initial values of a training's form, by model and by goal. No torch."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

Goal = Literal["style", "subject", "quick"]
GOALS: tuple[Goal, ...] = get_args(Goal)
MODELS = ("final", "dev", "embedded")

_Options = Mapping[str, Any]

_PUBLISHED: _Options = {
    "base_model_precision": "auto", "text_encoder_1_precision": "auto", "gradient_checkpointing": "auto",
}  # fmt: skip
"""``auto`` resolves to the best that fits the training's GPU; the plan shows it for the planned GPU."""
_EMBEDDED: _Options = {
    "resolution": 128, "train_batch_size": 4, "lr_scheduler": "cosine", "lora_targets": "all-linear", "lora_dropout": 0,
    "validation_max_drift": 0.5,
}  # fmt: skip
_GOALS_OF_PUBLISHED: Mapping[Goal, _Options] = {
    "style": {
        "lora_rank": 16, "learning_rate": 1e-4, "max_train_steps": 2000, "lr_warmup_steps": 50, "resolution": 1024,
        "validation_steps": 250, "checkpointing_steps": 250,
    },
    "subject": {
        "lora_rank": 32, "learning_rate": 1e-4, "max_train_steps": 1200, "lr_warmup_steps": 50, "resolution": 1024,
        "validation_steps": 150, "checkpointing_steps": 150,
    },
    "quick": {
        "lora_rank": 8, "learning_rate": 2e-4, "max_train_steps": 200, "lr_warmup_steps": 10, "resolution": 512,
        "validation_steps": 100, "checkpointing_steps": 100,
    },
}  # fmt: skip
_GOALS_OF_EMBEDDED: Mapping[Goal, _Options] = {
    "style": {
        "lora_rank": 16, "learning_rate": 2e-3, "max_train_steps": 400, "lr_warmup_steps": 20,
        "validation_steps": 100, "checkpointing_steps": 100,
    },
    "subject": {
        "lora_rank": 32, "learning_rate": 2e-3, "max_train_steps": 600, "lr_warmup_steps": 20,
        "validation_steps": 150, "checkpointing_steps": 150,
    },
    "quick": {
        "lora_rank": 8, "learning_rate": 2e-3, "max_train_steps": 60, "lr_warmup_steps": 5,
        "validation_steps": 30, "checkpointing_steps": 30,
    },
}  # fmt: skip


def goal_options(flavour: str, goal: Goal) -> _Options:
    """Return the options that a goal sets."""
    return (_GOALS_OF_EMBEDDED if flavour == "embedded" else _GOALS_OF_PUBLISHED)[goal]


def starting_options(flavour: str, goal: Goal = "style") -> dict[str, Any]:
    """Return the options of a new form."""
    model = _EMBEDDED if flavour == "embedded" else _PUBLISHED
    return {**model, **goal_options(flavour, goal), "model_flavour": flavour}
