"""``lithograph train``, ``validate``, ``plan``, ``dataset check`` and ``configure``: options to configuration, then run."""

import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from longcat.errors import LithographError
from longcat.logs import LOG_FORMATS, set_up_logging, tell
from trainer.config import TrainConfig
from trainer.config_file import load_config, parse_assignments

_PREFIX = "LITHOGRAPH_TRAIN_"
_NOT_CONFIGURATION = ("CONFIG", "LOG_FORMAT")
_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}
_log = logging.getLogger("lithograph.trainer")

_config_option = click.option(
    "--config", "path", type=click.Path(dir_okay=False, path_type=Path), envvar=f"{_PREFIX}CONFIG",
    help="config.json as SimpleTuner's, // comments allowed.",
)  # fmt: skip

_log_format_option = click.option(
    "--log-format", type=click.Choice(LOG_FORMATS), default="auto", show_default=True,
    help="auto is text on a terminal, else JSON lines.",
)  # fmt: skip

_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of lines to read.")


def read_config(path: Path | None, arguments: list[str]) -> TrainConfig:
    """File, then environment, then arguments: the later one counts."""
    from_environment = {
        key.removeprefix(_PREFIX).lower(): value
        for key, value in os.environ.items()
        if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _NOT_CONFIGURATION
    }
    assigned = parse_assignments([f"{key}={value}" for key, value in from_environment.items()])
    config, warnings = load_config(path, assigned | parse_assignments(arguments))
    for warning in warnings:
        tell(_log, "config_note", logging.WARNING, note=warning)
    return config


@click.command(context_settings=_ANY)
@_config_option
@_log_format_option
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def train(path: Path | None, log_format: str, options: tuple[str, ...]) -> None:
    """Train an adapter: lithograph train --config config/config.json [--learning_rate 1e-4] [seed=7].

    Every option of the file can be given here as --key value or key=value, or in the environment as
    LITHOGRAPH_TRAIN_KEY. Exit codes: 0 finished, 75 stopped with a checkpoint saved, 78 wrong configuration, 65
    unusable data, 71 out of memory, 69 storage, disk or hub, 1 anything else.
    """
    set_up_logging(log_format)
    sys.exit(int(_guarded(lambda: _train(path, list(options)))))


def _train(path: Path | None, options: list[str]) -> int:
    config = read_config(path, options)
    from trainer.run import train as run

    return int(run(config, show_bar=sys.stderr.isatty()))


@click.command(context_settings=_ANY)
@_config_option
@click.option(
    "--adapter",
    metavar="FILE|NAME[@V]",
    help="A safetensors file, or an adapter in publish_to. Default: the base alone.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def validate(path: Path | None, adapter: str | None, options: tuple[str, ...]) -> None:
    """Draw the validation prompts, with an adapter beside the base: pictures and a grid in output_dir/validation."""
    set_up_logging()

    def run() -> int:
        config = read_config(path, list(options))
        from trainer.bar import Lines, open_bar
        from trainer.preview import preview

        with open_bar() if sys.stderr.isatty() else nullcontext(Lines()) as shown:
            verdict = preview(config, adapter, show=shown.show)
        for file in verdict.files:
            click.echo(file)
        for reason in verdict.reasons:
            click.echo(f"not passed: {reason}", err=True)
        return 0

    sys.exit(_guarded(run))


@click.command(context_settings=_ANY)
@_config_option
@_json_option
@click.option(
    "--gpu-gib", type=click.FloatRange(min=0, min_open=True), help="Plan for a GPU of so much memory that is not here."
)
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="With fsdp_enable, torchrun's."
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def plan(path: Path | None, as_json: bool, gpu_gib: float | None, processes: int, options: tuple[str, ...]) -> None:
    """How much memory a training takes, part by part, before anything is loaded."""
    set_up_logging()

    def run() -> int:
        from trainer.planning import forecast

        made = forecast(
            read_config(path, list(options)),
            gpu_bytes=None if gpu_gib is None else int(gpu_gib * 2**30),
            processes=processes,
        )
        click.echo(json.dumps(made.as_json(), indent=1) if as_json else made.text())
        return 0

    sys.exit(_guarded(run))


@click.group()
def dataset() -> None:
    """Look at the data before training on it."""


@dataset.command(context_settings=_ANY)
@_config_option
@_json_option
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def check(path: Path | None, as_json: bool, options: tuple[str, ...]) -> None:
    """What is there, what would be dropped and why, buckets, languages; a contact sheet and a report in output_dir."""
    set_up_logging()

    def run() -> int:
        config = read_config(path, list(options))
        from longcat.flavour import describe as describe_model
        from trainer.report import contact_sheet, describe, report
        from trainer.scanning import REPORT_FILE, take_inventory

        inventory = take_inventory(config, describe_model(config.flavour, revision=config.revision))
        sheet = config.output_dir / "dataset.png"
        contact_sheet(inventory, sheet)
        if as_json:
            click.echo(json.dumps(report(inventory) | {"contact_sheet": str(sheet)}, ensure_ascii=True, indent=1))
        else:
            click.echo(describe(inventory))
            click.echo(f"report: {config.output_dir / REPORT_FILE}\ncontact sheet: {sheet}")
        return 0

    sys.exit(_guarded(run))


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="config/config.json",
              show_default=True,
              help="File to write.")  # fmt: skip
def configure(output: Path) -> None:
    """Ask a few questions and write a config.json."""

    def run() -> int:
        from trainer.configure import ask

        if output.exists():
            click.confirm(f"{output} is there already; replace it?", abort=True)
        ask(output)
        click.echo(
            f"written: {output}\nnext: lithograph dataset check --config {output}\n      lithograph train --config {output}"
        )
        return 0

    sys.exit(_guarded(run))


def _guarded(run: Any) -> int:
    """A mistake or a shortage as one line and its own exit code; a defect of ours keeps its stack trace."""
    try:
        return int(run())
    except LithographError as error:
        from trainer.outcome import outcome_of

        click.echo(f"error: {error}", err=True)
        return int(outcome_of(error))
    except (MemoryError, RuntimeError) as error:
        from trainer.outcome import Outcome, outcome_of

        outcome = outcome_of(error)
        if outcome is not Outcome.OUT_OF_MEMORY:
            raise
        click.echo(
            f"error: out of memory: {str(error).splitlines()[0]}; lower train_batch_size, resolution or lora_rank, set "
            "gradient_checkpointing true, base_model_precision int8-quanto or enable_group_offload; `lithograph plan` says "
            "what fits",
            err=True,
        )
        return int(outcome)
