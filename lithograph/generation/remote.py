"""``lithograph generate --server``: the images of a running service."""

import sys
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import Field

from lithograph.generation.output_files import format_of, write_pictures
from longcat.options import Configuration, Flag
from service.wire.events import ResultEvent, StepEvent

_PERCENT = 100


class ServerConfig(Configuration):
    """A running service that generates instead of this process."""

    server: Annotated[str | None, Flag(metavar="URL")] = None
    """Generate at a running service, such as http://127.0.0.1:8000."""
    api_key: Annotated[str | None, Field(repr=False), Flag(is_secret=True)] = None
    """API key of that service."""


def generate_at(remote: ServerConfig, prompt: str, given: dict[str, Any], output: Path) -> None:
    """Generate at a running service, and write the files. ``given`` are the request's fields. Raises the client's errors."""
    from lithograph.client.client import Client

    options: Any = given | {"output_format": format_of(output)}
    made = 0
    assert remote.server is not None
    with (
        Client(remote.server, api_key=remote.api_key) as client,
        click.progressbar(length=_PERCENT, label="generating", file=sys.stderr) as bar,
    ):
        for event in client.stream(prompt, **options):
            match event:
                case StepEvent():
                    made += 1
                    bar.update(_PERCENT * made // (event.steps * options.get("num_images", 1)) - bar.pos)
                case ResultEvent():
                    bar.update(_PERCENT - bar.pos)
                    write_pictures(output, [image.content for image in event.images], event.request.seed)
