"""The commands ``lithograph dataset check`` and ``caption``."""

import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import click

from longcat.errors import ConfigError
from longcat.logs import set_up_logging
from trainer.commands.configuration import OPTIONS, config_option, json_option, read_config
from trainer.commands.exit_code import exit_code_of


@click.group()
def dataset() -> None:
    """Check training data."""


@dataset.command(context_settings=OPTIONS)
@config_option
@json_option
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

    sys.exit(exit_code_of(run, as_json=as_json))


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
@json_option
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
            caption_and_report, folder, language=language, template=template, overwrites=overwrite, as_json=as_json
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
        key = key_file.read_text(encoding="utf-8").strip() if key_file else api_key
        settings = EndpointSettings(
            url=endpoint, model=model, key=key, timeout_seconds=timeout_seconds, retries=retries, max_tokens=max_tokens
        )
        with closing(CaptionEndpoint(settings)) as client:
            return caption_pictures(client.describe, workers=workers)

    sys.exit(exit_code_of(run, as_json=as_json))
