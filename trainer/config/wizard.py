"""The questions of ``lithograph configure``, which writes a ``config.json`` with a comment on each option."""

import json
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from longcat.storage.atomic import write_atomically
from longcat.validation import problems_of
from trainer.config.options import TrainConfig
from trainer.config.reading.json_text import unusable_text


def ask(output: Path) -> None:
    """Ask for the main options, validate each answer, and write the file."""
    options: dict[str, Any] = {"model_type": "lora", "model_family": "longcat_image"}

    def answer(key: str, question: str, **how: Any) -> Any:
        """Ask until the answer is valid."""
        while True:
            given = _unquoted(click.prompt(question, **how))
            try:
                TrainConfig.model_validate(options | {key: given})
            except ValidationError as error:
                click.echo(". ".join(map(str, problems_of(error, TrainConfig))), err=True)
            else:
                options[key] = given
                return given

    flavours = click.Choice(["final", "dev", "embedded"])
    small = answer("model_flavour", "Model flavour", type=flavours, default="final") == "embedded"
    answer("base_model_precision", "Base precision (int8-quanto fits 16 to 24 GB; auto decides by the device)",
           default="no_change" if small else "int8-quanto")  # fmt: skip
    answer("instance_data_dir", "Directory or s3://bucket/prefix of pictures with captions")
    strategies = click.Choice(["textfile", "filename", "csv", "json", "jsonl"])
    answer("caption_strategy", "Captions from", type=strategies, default="textfile")
    answer("resolution", "Resolution, or sizes as 1024x1024,1344x768", default="128" if small else "1024")
    answer("train_batch_size", "Pictures per step", type=int, default=4 if small else 1)
    options["gradient_checkpointing"] = click.confirm("Save memory by gradient checkpointing?", default=not small)
    answer("lora_rank", "LoRA rank", type=int, default=16)
    answer("learning_rate", "Learning rate", type=float, default=1e-3 if small else 1e-4)
    answer("max_train_steps", "Training steps", type=int, default=400 if small else 1000)
    options["validation_prompts"] = [prompt for prompt in map(_ask_prompt, ("Chinese", "English")) if prompt]
    answer("output_dir", "Output directory", default="output")
    options["resume_from_checkpoint"] = "latest"
    if publish_to := _unquoted(click.prompt("Adapter storage, file:///… or s3://… (empty: only in the output directory)",
                                            default="", show_default=False)):  # fmt: skip
        options["publish_to"] = publish_to
        answer("adapter_name", "Adapter name")
    write_atomically(output, _commented(options).encode())


def _ask_prompt(language: str) -> str:
    while True:
        given = str(click.prompt(f"Validation prompt, {language} (empty for none)", default="", show_default=False))
        if (problem := unusable_text(given)) is None:
            return given
        click.echo(str(problem), err=True)


def _unquoted(given: Any) -> Any:
    """Return an answer without the quotes and spaces that a path has when it is dragged or copied to a terminal."""
    if not isinstance(given, str):
        return given
    text = given.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _commented(options: dict[str, Any]) -> str:
    lines = []
    for key, value in options.items():
        text = (TrainConfig.model_fields[key].description or "").replace("\n", " ").split(". ")[0].rstrip(".:")
        lines.append(f"  // {text}\n  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
