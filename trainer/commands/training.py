"""The commands ``lithograph train``, ``report``, ``validate``, ``plan`` and ``configure``."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import click

from longcat.errors import ConfigError
from longcat.logs import LOG_FORMATS, set_up_logging
from trainer.commands.configuration import OPTIONS, config_option, json_option, read_config
from trainer.commands.exit_code import exit_code_of
from trainer.config.options import TrainConfig

_log_format_option = click.option(
    "--log-format", type=click.Choice(LOG_FORMATS), default="auto", show_default=True,
    help="auto: text on a terminal, otherwise JSON lines.",
)  # fmt: skip


@click.command(context_settings=OPTIONS)
@config_option
@_log_format_option
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def train(path: Path | None, log_format: str, options: tuple[str, ...]) -> None:
    """Train an adapter: lithograph train --config config/config.json [--learning_rate 1e-4] [seed=7].

    Every option of the file can also be given as --key value or key=value, or in the environment as
    LITHOGRAPH_TRAIN_KEY. Exit codes: 0 finished, 75 stopped with a checkpoint saved, 77 trained but not
    published because of a threshold, 78 wrong configuration, 65 unusable data, 71 out of memory, 69 storage, disk or
    model hub, 1 any other error.
    """
    set_up_logging(log_format)
    sys.exit(int(exit_code_of(lambda: _train(path, list(options)))))


@click.command(context_settings=OPTIONS)
@config_option
@_log_format_option
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def distill(path: Path | None, log_format: str, options: tuple[str, ...]) -> None:
    """Make an adapter that needs few steps and no guidance: lithograph distill --config config/turbo.json.

    The base with guidance is the teacher, and prompts are the only data. The configuration is that of
    `lithograph train` with "distillation": {"prompts": "prompts.txt", "steps": 8} in place of pictures. Exit codes
    are those of `lithograph train`.
    """
    set_up_logging(log_format)
    sys.exit(int(exit_code_of(lambda: _distill(path, list(options)))))


def _distill(path: Path | None, options: list[str]) -> int:
    config = read_config(path, options)
    if config.distillation is None:
        raise ConfigError(
            "distillation_missing",
            "missing",
            remedy='give {{"prompts": "prompts.txt", "steps": 8}}, or use `lithograph train` to learn from pictures',
            field="distillation",
        )
    return _run(config)


def _train(path: Path | None, options: list[str]) -> int:
    return _run(read_config(path, options))


def _run(config: TrainConfig) -> int:
    from trainer.run.pipeline import train as run

    return int(run(config, show_bar=sys.stderr.isatty()))


@click.command(context_settings=OPTIONS)
@config_option
@click.option(
    "--adapter",
    metavar="FILE|NAME[@V]",
    help="Adapter to validate: a safetensors file, or a name in publish_to. Default: the base model alone.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def validate(path: Path | None, adapter: str | None, options: tuple[str, ...]) -> None:
    """Generate the validation prompts with the base and an adapter: pictures and a grid in output_dir/validation."""
    set_up_logging()

    def run() -> int:
        config = read_config(path, list(options))
        from trainer.record.bar import Lines, open_bar
        from trainer.validation.preview import preview

        with open_bar() if sys.stderr.isatty() else nullcontext(Lines()) as shown:
            result = preview(config, adapter, show=shown.show)
        for file in result.files:
            click.echo(file)
        for problem in result.problems:
            click.echo(f"not passed: {problem}", err=True)
        return 0

    sys.exit(exit_code_of(run))


@click.command(context_settings=OPTIONS)
@config_option
@json_option
@click.option(
    "--gpu-gib",
    type=click.FloatRange(min=0, min_open=True),
    help="Plan for a GPU with this much memory instead of this machine's device.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of processes that fsdp_enable shards the base over.",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def plan(path: Path | None, as_json: bool, gpu_gib: float | None, processes: int, options: tuple[str, ...]) -> None:
    """Show how much memory a training takes, part by part. Nothing is loaded.

    For serving: lithograph serve --plan.
    """
    set_up_logging()

    def run() -> int:
        from trainer.memory.forecast import forecast

        made = forecast(
            read_config(path, list(options)),
            gpu_bytes=None if gpu_gib is None else int(gpu_gib * 2**30),
            processes=processes,
        )
        click.echo(json.dumps(made.as_json(), indent=1) if as_json else made.text())
        return 0

    sys.exit(exit_code_of(run, as_json=as_json))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@json_option
def report(run: Path, as_json: bool) -> None:
    """Show the report card of a training: whether it overfits, which step is the best, whether it copies.

    RUN is the training's output_dir, while it runs or afterwards.
    """

    def show() -> int:
        from trainer.record.report_text import report_json, report_text
        from trainer.record.run_file import read_run

        record = read_run(run)
        click.echo(json.dumps(report_json(record), ensure_ascii=True, indent=1) if as_json else report_text(record))
        return 0

    sys.exit(exit_code_of(show, as_json=as_json))


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="config/config.json",
              show_default=True,
              help="File to write.")  # fmt: skip
def configure(output: Path) -> None:
    """Ask a few questions and write a config.json."""

    def run() -> int:
        from trainer.config.wizard import ask

        if output.exists():
            click.confirm(f"{output} exists; replace it?", abort=True)
        ask(output)
        click.echo(
            f"written: {output}\nnext: lithograph dataset check --config {output}\n      lithograph train --config {output}"
        )
        return 0

    sys.exit(exit_code_of(run))
