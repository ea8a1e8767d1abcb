"""``lithograph edit``: ``lithograph generate`` from a picture."""

from pathlib import Path
from typing import Any

import click

from lithograph.generation.generate import generate

_OWN = ("image", "recipe", "prompt")
"""Parameters of ``generate`` that are arguments here, or mean nothing."""


@click.pass_context
def _edit(context: click.Context, /, picture: Path, prompt: str, **options: Any) -> None:
    """Change PICTURE as PROMPT says (Chinese or English): all of it, or what is white in a --mask."""
    assert generate.callback is not None
    context.invoke(generate.callback, image=picture, prompt=prompt, recipe=None, **options)


edit = click.Command(
    "edit",
    callback=_edit,
    help=_edit.__doc__,
    params=[
        click.Argument(["picture"], type=click.Path(exists=True, dir_okay=False, path_type=Path)),
        click.Argument(["prompt"]),
        *(parameter for parameter in generate.params if parameter.name not in _OWN),
    ],
)
