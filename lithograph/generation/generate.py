"""``lithograph generate``: an image file from a prompt, generated here or by a running service."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lithograph.generation.local import GIVEN_WITH_RECIPE, LocalGeneration
from lithograph.generation.output_files import format_of
from lithograph.generation.pictures import EDIT_OPTIONS, edit_fields
from lithograph.generation.recipe import FIXED_BY_RECIPE
from lithograph.generation.remote import ServerConfig, generate_at
from longcat.errors import UserError
from longcat.options import Configuration, command_options, configure, options_of
from service.config import AdapterConfig, ModelConfig
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import PRIORITIES, AdapterChoice


@click.command()
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="picture.png", show_default=True,
              help="File to write; .png, .jpg or .webp. Several images get -0, -1, ... before the ending.")  # fmt: skip
@click.option("--negative-prompt", help="Content to avoid.")
@click.option("--width", type=int, help="Pixels, a multiple of 64.")
@click.option("--height", type=int, help="Pixels, a multiple of 64.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance-scale", type=float, help="Classifier-free guidance; 1 or less turns it off.")
@click.option("--seed", type=int, help="Image i is generated from seed + i. Random if absent.")
@click.option("--num-images", type=int, help="Images to generate.")
@click.option("--cfg-renorm/--no-cfg-renorm", default=None, help="Keep guided norms at most the conditional ones.")
@click.option("--rewrite-prompt", is_flag=True, default=None, help="Let the text encoder enrich the prompt first.")
@click.option("--quality", type=click.Choice(["exact", "balanced", "fast"]),
              help="exact, the default, computes every row of every step; the others reuse predictions.")  # fmt: skip
@click.option("--priority", type=click.Choice(PRIORITIES),
              help="With --server: high goes before normal, normal before low, as far as the API key allows.")  # fmt: skip
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Picture to start from; lithograph edit PICTURE is the same.")  # fmt: skip
@click.option("--mask", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Picture of the same shape: what is white, or transparent, is changed, the rest stays.")  # fmt: skip
@click.option("--strength", type=float,
              help="Part of the steps that are made: 1 keeps nothing of it. [default: 0.6; 1 with a mask]")  # fmt: skip
@click.option("--expand", metavar="PIXELS",
              help="Add to the picture: multiples of 64, for all sides or as left,top,right,bottom.")  # fmt: skip
@click.option("--adapter", "uses", multiple=True, metavar="NAME[@VERSION][:SCALE]",
              help="LoRA adapter of --adapters, such as ink, ink@3 or ink@3:0.8. Repeatable.")  # fmt: skip
@command_options(AdapterConfig, only=("uri", "endpoint_url"))
@command_options(ServerConfig)
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Picture file from Lithograph: generate the same image again, byte for byte.")  # fmt: skip
@command_options(ProvenanceConfig)
@command_options(ModelConfig)
@click.pass_context
def generate(
    context: click.Context,
    /,
    prompt: str | None,
    output: Path,
    recipe: Path | None,
    uses: tuple[str, ...],
    adapters: str | None,
    adapters_endpoint_url: str | None,
    **options: Any,
) -> None:
    """Generate an image of PROMPT (Chinese or English) into a file, here or at a running service."""
    source = None if adapters is None else (adapters, adapters_endpoint_url)
    model, labels = _taken(options, ModelConfig), _taken(options, ProvenanceConfig)
    remote = configure(ServerConfig, {name: options.pop(name) for name in ("server", "api_key", "api_key_file")})
    edit = {name: options.pop(name) for name in EDIT_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    if remote.server is not None:
        if prompt is None:
            raise click.UsageError("--server needs a PROMPT")
        _refuse(_explicit(context, ("recipe", "adapters", "adapters_endpoint_url", *model, *labels)))
        scales = {choice.name: choice.scale for choice in map(_adapter_choice, uses)}
        generate_at(remote, prompt, given | edit_fields(edit) | {"adapters": scales}, output)
        return
    if needless := [name for name in ("api_key", "priority") if name in given or getattr(remote, name, None)]:
        raise click.UsageError(f"--{needless[0].replace('_', '-')} needs --server")
    if recipe is not None:
        fixed = (*FIXED_BY_RECIPE, *options, *(labels.keys() - GIVEN_WITH_RECIPE), "uses", "strength", "expand")
        if prompt is not None or _explicit(context, fixed):
            raise click.UsageError("--recipe repeats an image as it is: give no prompt and no request options with it")
        follow_flavour = context.get_parameter_source("flavour") is ParameterSource.DEFAULT
        generation = LocalGeneration.of_recipe(
            recipe, output, edit, model, labels, follow_flavour=follow_flavour, has_adapters=source is not None
        )
    elif prompt is not None:
        choices = tuple(_adapter_choice(use) for use in uses)
        fields = {"prompt": prompt, "output_format": format_of(output), "adapters": choices, **given}
        generation = LocalGeneration.of_prompt(fields | edit_fields(edit), model, labels)
    else:
        raise click.UsageError("give a PROMPT, or --recipe PICTURE")
    generation.run(output, source)


def _taken(options: dict[str, Any], configuration: type[Configuration]) -> dict[str, Any]:
    """Take the options of a configuration out of all options."""
    return {option.parameter: options.pop(option.parameter) for option in options_of(configuration)}


def _refuse(local: list[str]) -> None:
    """Raise ``click.UsageError`` for options of a model in this process."""
    if local:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in local)
        raise click.UsageError(f"--server uses the server's model and adapters: leave out {names}")


def _explicit(context: click.Context, names: Iterable[str]) -> list[str]:
    """Return the options that were given."""
    return [name for name in names if context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)]


def _adapter_choice(text: str) -> AdapterChoice:
    """Read ``ink``, ``ink@3`` or ``ink@3:0.8``. Raises ``UserError``."""
    name, colon, scale = text.partition(":")
    try:
        return AdapterChoice(name=name, scale=float(scale) if colon else 1.0)
    except ValueError as error:
        raise UserError(
            "adapter_option_malformed",
            "neither a name nor a name with a scale",
            remedy="give NAME, NAME@VERSION or NAME:SCALE, with a scale from -10 to 10",
            field="--adapter",
            value=text,
        ) from error
