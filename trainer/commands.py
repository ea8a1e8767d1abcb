"""The commands ``lithograph train``, ``report``, ``validate``, ``plan``, ``dataset check|caption`` and ``configure``."""

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import click

from longcat.errors import ConfigError, LithographError
from longcat.logs import LOG_FORMATS, log_event, set_up_logging
from trainer.config.assignments import parse_assignments
from trainer.config.file import load_config
from trainer.config.options import TrainConfig

_PREFIX = "LITHOGRAPH_TRAIN_"
_NOT_CONFIGURATION = ("CONFIG", "LOG_FORMAT")
_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}
_log = logging.getLogger("lithograph.trainer")

_config_option = click.option(
    "--config", "path", type=click.Path(dir_okay=False, path_type=Path), envvar=f"{_PREFIX}CONFIG",
    help="Configuration file in SimpleTuner's format; // comments are allowed.",
)  # fmt: skip

_log_format_option = click.option(
    "--log-format", type=click.Choice(LOG_FORMATS), default="auto", show_default=True,
    help="auto: text on a terminal, otherwise JSON lines.",
)  # fmt: skip

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def read_config(path: Path | None, arguments: list[str]) -> TrainConfig:
    """Read the configuration from file, environment and arguments; a later one overrides an earlier one."""
    from_environment = {
        key.removeprefix(_PREFIX).lower(): value
        for key, value in os.environ.items()
        if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _NOT_CONFIGURATION
    }
    assigned = parse_assignments([f"{key}={value}" for key, value in from_environment.items()])
    config, warnings = load_config(path, assigned | parse_assignments(arguments))
    for warning in warnings:
        log_event(_log, "config_note", logging.WARNING, note=str(warning))
    return config


@click.command(context_settings=_ANY)
@_config_option
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
    sys.exit(int(_guarded(lambda: _train(path, list(options)))))


def _train(path: Path | None, options: list[str]) -> int:
    config = read_config(path, options)
    from trainer.run.pipeline import train as run

    return int(run(config, show_bar=sys.stderr.isatty()))


@click.command(context_settings=_ANY)
@_config_option
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

    sys.exit(_guarded(run))


@click.command(context_settings=_ANY)
@_config_option
@_json_option
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

    sys.exit(_guarded(run))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@_json_option
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

    sys.exit(_guarded(show))


@click.group()
def dataset() -> None:
    """Check training data."""


@dataset.command(context_settings=_ANY)
@_config_option
@_json_option
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def check(path: Path | None, as_json: bool, options: tuple[str, ...]) -> None:
    """Report pictures, dropped files with reasons, buckets and languages; write a report and a contact sheet."""
    set_up_logging()

    def run() -> int:
        config = read_config(path, list(options))
        from longcat.model.flavour import describe as describe_model
        from trainer.data.report import contact_sheet, describe, report
        from trainer.data.scan import REPORT_FILE, take_inventory

        inventory = take_inventory(config, lambda: describe_model(config.flavour, revision=config.revision))
        sheet = config.output_dir / "dataset.png"
        contact_sheet(inventory, sheet)
        if as_json:
            click.echo(json.dumps(report(inventory) | {"contact_sheet": str(sheet)}, ensure_ascii=True, indent=1))
        else:
            click.echo(describe(inventory))
            click.echo(f"report: {config.output_dir / REPORT_FILE}\ncontact sheet: {sheet}")
        return 0

    sys.exit(_guarded(run))


@dataset.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--endpoint", metavar="URL",
              help="OpenAI-compatible endpoint of a vision-language model, such as http://127.0.0.1:8000/v1.")  # fmt: skip
@click.option("--model", metavar="NAME", help="Name of the model at the endpoint.")
@click.option(
    "--flavour",
    metavar="NAME",
    help="Instead of an endpoint: the model whose text encoder describes the pictures here: final, dev or a directory.",
)
@click.option(
    "--device", default="auto", show_default=True, help="Device of --flavour: auto, cpu, cuda, cuda:N or mps."
)
@click.option("--language", type=click.Choice(["zh", "en", "both"]), default="both", show_default=True,
              help="Language of the captions; both are two lines, of which the training takes one at a time.")  # fmt: skip
@click.option("--template", metavar="TEXT",
              help="Instruction to the model; {language} is replaced by Chinese or English.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Caption again the pictures that have captions.")
@click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="Number of requests at once.")
@click.option("--retries", type=click.IntRange(0, 20), default=3, show_default=True,
              help="Retries if the endpoint is busy or gives no reply.")  # fmt: skip
@click.option("--timeout-seconds", type=click.FloatRange(min=0, min_open=True), default=120, show_default=True,
              help="Time limit of one reply.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(1), default=300, show_default=True, help="Most tokens of a caption.")
@click.option("--key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="File with the endpoint's key, instead of OPENAI_API_KEY.")  # fmt: skip
@click.option("--api-key", envvar=["LITHOGRAPH_CAPTION_KEY", "OPENAI_API_KEY"], hidden=True)
@_json_option
def caption(
    folder: Path,
    endpoint: str | None,
    model: str | None,
    flavour: str | None,
    device: str,
    language: str,
    template: str | None,
    overwrite: bool,
    workers: int,
    retries: int,
    timeout_seconds: float,
    max_tokens: int,
    key_file: Path | None,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Write a caption beside each picture of FOLDER that has none, by a vision-language model.

    The same command again continues. Exit code 65: some pictures got no caption; they are listed with the reason.
    """

    def run() -> int:
        from trainer.data.captioning.endpoint import CaptionEndpoint, EndpointSettings
        from trainer.data.captioning.report import caption_and_report

        caption_pictures = partial(
            caption_and_report,
            folder,
            language=language,
            template=template,
            overwrites=overwrite,
            as_json=as_json,
        )
        if flavour is not None and endpoint is None and model is None:
            from longcat.model.flavour import resolve
            from trainer.encode.captioner import LocalCaptioner

            local = LocalCaptioner(resolve(flavour), device=device, max_tokens=max_tokens)
            return caption_pictures(local.describe, workers=1)
        if flavour is not None or endpoint is None or model is None:
            raise ConfigError(
                "captioner_unclear",
                "give an endpoint and the name of its model, or a flavour",
                remedy="use --endpoint URL --model NAME, or --flavour final",
            )
        settings = EndpointSettings(
            url=endpoint,
            model=model,
            key=key_file.read_text(encoding="utf-8").strip() if key_file else api_key,
            timeout_seconds=timeout_seconds,
            retries=retries,
            max_tokens=max_tokens,
        )
        with closing(CaptionEndpoint(settings)) as client:
            return caption_pictures(client.describe, workers=workers)

    sys.exit(_guarded(run))


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

    sys.exit(_guarded(run))


def _guarded(run: Callable[[], int]) -> int:
    """Run a command; report an error of ours or a lack of memory in one line, with its exit code."""
    try:
        return run()
    except (LithographError, MemoryError, RuntimeError) as error:
        from trainer.outcome import Outcome, outcome_of, problems_of

        outcome = outcome_of(error)
        if not isinstance(error, LithographError) and outcome is not Outcome.OUT_OF_MEMORY:
            raise  # a defect: print its stack trace instead of one line
        click.echo(f"error: {'. '.join(map(str, problems_of(error)))}", err=True)
        return int(outcome)
