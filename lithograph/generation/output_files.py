"""The picture files that ``lithograph generate`` writes: their format, by the name's ending, and their content."""

from collections.abc import Sequence
from pathlib import Path

import click

from lithograph.output import output_error
from longcat.errors import UserError
from service.wire.picture import Recipe


def format_of(output: Path) -> str:
    """Return the format that a name stands for. Raises ``UserError`` for another ending, or a missing directory."""
    formats = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    if output.suffix.lower() not in formats:
        raise UserError(
            "output_format_unknown",
            "not the name of an image file",
            remedy="end the name in {endings}",
            field="--output",
            value=str(output),
            endings=", ".join(formats),
        )
    if not output.parent.is_dir():
        raise UserError(
            "output_without_directory",
            "there is no directory {path}",
            remedy="create it first",
            field="--output",
            value=str(output),
            path=str(output.parent),
        )
    return formats[output.suffix.lower()]


def check_format(output: Path, recipe: Recipe) -> None:
    """Raise ``UserError`` unless the file will be of the recipe's format."""
    if format_of(output) != recipe.request.output_format:
        raise UserError(
            "output_not_of_recipe_format",
            "the recipe is of a {format} file",
            remedy="end the name likewise",
            field="--output",
            value=str(output),
            format=recipe.request.output_format,
        )


def write_pictures(output: Path, files: Sequence[bytes], seed: int) -> None:
    """Write each file atomically; several are numbered."""
    for index, content in enumerate(files):
        path = output if len(files) == 1 else output.with_stem(f"{output.stem}-{index}")
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise output_error(path, error) from error
        click.echo(f"{path} seed {seed + index}")
