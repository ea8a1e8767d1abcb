"""The output of ``lithograph dataset caption``: a line for each picture as it is done, or JSON at the end. No torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from trainer.data.captioning.folder import Captioned, Describe, caption_folder
from trainer.data.captioning.text import TEMPLATE, CaptionLanguage
from trainer.record.outcome import Outcome

_LANGUAGES: Mapping[str, Sequence[CaptionLanguage]] = {"zh": ("zh",), "en": ("en",), "both": ("zh", "en")}


def caption_and_report(
    folder: Path,
    describe: Describe,
    *,
    language: str,
    template: str | None,
    overwrites: bool,
    workers: int,
    as_json: bool,
) -> int:
    """Caption a directory and print the result of each picture. Return the exit code: 65 if one has no caption."""
    done: list[Captioned] = []
    captioned = caption_folder(
        folder,
        describe,
        languages=_LANGUAGES[language],
        template=template or TEMPLATE,
        overwrites=overwrites,
        workers=workers,
    )
    for one in captioned:
        done.append(one)
        if not as_json:
            _print(one)
    done.sort(key=lambda one: one.key)
    failed = [one for one in done if one.problem]
    made = [one for one in done if one.captions]
    kept = len(done) - len(failed) - len(made)
    if as_json:
        report = {
            "captioned": {one.key: one.captions for one in made},
            "kept": kept,
            "failed": {one.key: one.problem.to_json() for one in failed if one.problem},
        }
        click.echo(json.dumps(report, ensure_ascii=True, indent=1))
    else:
        click.echo(f"{len(made)} captioned, {kept} left as they are, {len(failed)} failed")
    return int(Outcome.BAD_DATA if failed else Outcome.FINISHED)


def _print(one: Captioned) -> None:
    if one.problem:
        click.echo(f"{one.key}: {one.problem}", err=True)
    for text in one.captions:
        click.echo(f"{one.key}: {text}")
