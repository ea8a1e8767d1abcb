"""``lithograph configure``: a few questions, then a ``config.json`` with a comment on each line."""

import json
from pathlib import Path
from typing import Any

import click

from longcat.errors import ConfigError
from trainer.atomic import write_atomically
from trainer.config import TrainConfig


def ask(output: Path) -> None:
    """Ask, check, and write. Raises ``ConfigError`` if the answers cannot work together."""
    flavour = click.prompt("Model flavour", type=click.Choice(["final", "dev", "embedded"]), default="final")
    small = flavour == "embedded"
    said: dict[str, Any] = {"model_type": "lora", "model_family": "longcat_image", "model_flavour": flavour}
    said["base_model_precision"] = click.prompt(
        "Base precision (int8-quanto fits 16 to 24 GB; auto decides by the device)",
        default="no_change" if small else "int8-quanto",
    )
    said["instance_data_dir"] = click.prompt("Directory or s3://bucket/prefix of pictures with captions")
    said["caption_strategy"] = click.prompt(
        "Captions from", type=click.Choice(["textfile", "filename", "csv", "json", "jsonl"]), default="textfile"
    )
    said["resolution"] = click.prompt("Resolution, or sizes as 1024x1024,1344x768", default="128" if small else "1024")
    said["train_batch_size"] = click.prompt("Pictures a step", type=int, default=4 if small else 1)
    said["gradient_checkpointing"] = click.confirm("Save memory by gradient checkpointing?", default=not small)
    said["lora_rank"] = click.prompt("LoRA rank", type=int, default=16)
    said["learning_rate"] = click.prompt("Learning rate", type=float, default=1e-3 if small else 1e-4)
    said["max_train_steps"] = click.prompt("Training steps", type=int, default=400 if small else 1000)
    prompts = [click.prompt(f"Validation prompt, {language} (empty for none)", default="", show_default=False)
               for language in ("Chinese", "English")]  # fmt: skip
    said["validation_prompts"] = [prompt for prompt in prompts if prompt]
    said["output_dir"] = click.prompt("Output directory", default="output")
    said["resume_from_checkpoint"] = "latest"
    if publish_to := click.prompt("Adapter storage, file:///… or s3://… (empty: only in the output directory)",
                                  default="", show_default=False):  # fmt: skip
        said["publish_to"] = publish_to
        said["adapter_name"] = click.prompt("Adapter name")
    try:
        TrainConfig.model_validate(said)
    except ValueError as error:
        raise ConfigError(f"these answers cannot work: {error}") from error
    write_atomically(output, _commented(said).encode())


def _commented(said: dict[str, Any]) -> str:
    lines = []
    for key, value in said.items():
        text = (TrainConfig.model_fields[key].description or "").replace("\n", " ").split(". ")[0].rstrip(".:")
        lines.append(f"  // {text}\n  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
