"""``lithograph generate``: an image file from a prompt, generated here or by a running service."""

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import click
from click.core import ParameterSource
from pydantic import Field

from lithograph.generation.pictures import EDIT_OPTIONS, edit_fields
from lithograph.generation.recipe import (
    FIXED_BY_RECIPE,
    check_size,
    come_with,
    fields_of_recipe,
    mark_of_recipe,
    model_of,
)
from lithograph.output import output_error
from longcat.errors import UserError
from longcat.model.flavour import Flavour, resolve
from longcat.options import Configuration, Flag, command_options, configure, options_of
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.validation import validated
from service.config import AdapterConfig, ModelConfig
from service.memory.flavour_choice import settled
from service.wire.events import ResultEvent, StepEvent
from service.wire.limits import Limits
from service.wire.picture import Recipe, read_recipe
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import (
    MAX_ADAPTERS,
    PRIORITIES,
    AdapterChoice,
    GenerateRequest,
    ResolvedRequest,
)

_Resolved = tuple[ResolvedRequest, SourcePicture | None]
_PERCENT = 100
_MAX_ROWS = 8
"""Rows in one forward: four images with guidance. It bounds activation memory, as --max-rows does in the service."""


class ServerConfig(Configuration):
    """A running service that generates instead of this process."""

    server: Annotated[str | None, Flag(metavar="URL")] = None
    """Generate at a running service, such as http://127.0.0.1:8000."""
    api_key: Annotated[str | None, Field(repr=False), Flag(is_secret=True)] = None
    """API key of that service."""


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
    chosen = {option.parameter: options.pop(option.parameter) for option in options_of(ModelConfig)}
    labels = {option.parameter: options.pop(option.parameter) for option in options_of(ProvenanceConfig)}
    remote = configure(ServerConfig, {name: options.pop(name) for name in ("server", "api_key", "api_key_file")})
    sources = {name: options.pop(name) for name in EDIT_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    if remote.server is not None:
        if prompt is None:
            raise click.UsageError("--server needs a PROMPT")
        _refuse(_explicit(context, ("recipe", "adapters", "adapters_endpoint_url", *chosen, *labels)))
        scales = {choice.name: choice.scale for choice in map(_adapter_choice, uses)}
        _generate_at(remote, prompt, given | edit_fields(sources) | {"adapters": scales}, output)
        return
    if needless := [name for name in ("api_key", "priority") if name in given or getattr(remote, name, None)]:
        raise click.UsageError(f"--{needless[0].replace('_', '-')} needs --server")
    defaulted: tuple[str, ...] = ()
    if recipe is not None:
        own = {name: labels.pop(name) for name in ("c2pa_certificate", "c2pa_key", "visible_mark_font")}
        explicit = _explicit(context, (*FIXED_BY_RECIPE, *options, *labels, "uses", "strength", "expand"))
        if prompt is not None or explicit:
            raise click.UsageError("--recipe repeats an image as it is: give no prompt and no request options with it")
        follow_flavour = context.get_parameter_source("flavour") is ParameterSource.DEFAULT
        made = read_recipe(recipe)
        labels = {"picture_label": "off"} if made.producer is None else {"picture_producer": made.producer}
        labels |= own | mark_of_recipe(made, recipe, own["visible_mark_font"])
        _check_format(output, made)
        config, flavour = model_of(made, recipe, chosen, follow_flavour=follow_flavour, has_adapters=source is not None)
        body = validated(GenerateRequest, fields_of_recipe(made, recipe, sources))
    elif prompt is not None:
        choices = tuple(_adapter_choice(use) for use in uses)
        fields = {"prompt": prompt, "output_format": _format_of(output), "adapters": choices, **given}
        fields |= edit_fields(sources)
        config = settled(configure(ModelConfig, chosen))
        flavour = resolve(config.flavour, revision=config.revision)
        body = validated(GenerateRequest, fields)
        defaulted = body.defaulted
    else:
        raise click.UsageError("give a PROMPT, or --recipe PICTURE")
    provenance = configure(ProvenanceConfig, labels)
    resolved = _resolve(body, flavour, has_adapters=source is not None, signs=provenance.signs)
    if recipe is not None:
        check_size(resolved[0], made, recipe)
    _generate_here(config, flavour, resolved, output, source, provenance, defaulted)


def _refuse(local: list[str]) -> None:
    """Raise ``click.UsageError`` for options of a model in this process."""
    if local:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in local)
        raise click.UsageError(f"--server uses the server's model and adapters: leave out {names}")


def _explicit(context: click.Context, names: Iterable[str]) -> list[str]:
    """Return the options that were given."""
    return [name for name in names if context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)]


def _check_format(output: Path, recipe: Recipe) -> None:
    """Raise ``UserError`` unless the file will be of the recipe's format."""
    if _format_of(output) != recipe.request.output_format:
        raise UserError(
            "output_not_of_recipe_format",
            "the recipe is of a {format} file",
            remedy="end the name likewise",
            field="--output",
            value=str(output),
            format=recipe.request.output_format,
        )


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


def _resolve(request: GenerateRequest, flavour: Flavour, *, has_adapters: bool, signs: bool) -> _Resolved:
    """Resolve a request, and read its picture; locally, only the model limits it."""
    from longcat.model.tokenizer import load_tokenizer, plain_ids  # transformers: half of the time of ``--server``

    tokenize = plain_ids(load_tokenizer(flavour.folder))
    has_adapters = has_adapters or come_with(flavour, [choice.name for choice in request.adapters])
    limits = Limits.of_model(flavour, has_adapters=has_adapters, keeps_manifests=signs)
    return limits.resolve_with_picture(request, tokenize)


def _generate_here(
    config: ModelConfig,
    flavour: Flavour,
    resolved: _Resolved,
    output: Path,
    source: tuple[str, str | None] | None,
    provenance: ProvenanceConfig,
    defaulted: tuple[str, ...],
) -> None:
    """Generate with the renderer in this process. ``source`` is the adapter storage and its endpoint."""
    from service.renderer import Renderer

    request, picture = resolved
    steps = request.denoising_steps * request.num_images
    with tempfile.TemporaryDirectory(prefix="lithograph-") as folder:
        adapters = None
        if request.adapters:
            uri, endpoint_url = _storage_of(source, flavour)
            label = flavour.adapters_label if source is None else None
            adapters = AdapterConfig(
                uri=uri, endpoint_url=endpoint_url, label=label, slots=MAX_ADAPTERS, folder=Path(folder)
            )
        renderer = Renderer(config, flavour, max_rows=_MAX_ROWS, adapters=adapters, provenance=provenance)
        with click.progressbar(length=steps, label="generating", file=sys.stderr) as bar:
            rendered = renderer.render(
                request,
                lambda made, total: bar.update(steps * made // total - bar.pos),
                picture=picture,
                defaulted=defaulted,
            )
    _write(output, [picture.content for picture in rendered.images], request.seed)


def _storage_of(source: tuple[str, str | None] | None, flavour: Flavour) -> tuple[str, str | None]:
    """Return the adapter storage and its endpoint: by default that of the adapters that come with the model."""
    if source is not None:
        return source
    assert flavour.adapters is not None  # without any storage, requests with adapters fail validation
    return flavour.adapters.as_uri(), None


def _generate_at(remote: ServerConfig, prompt: str, given: dict[str, Any], output: Path) -> None:
    from lithograph.client.client import Client

    options: Any = given | {"output_format": _format_of(output)}
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
                    _write(output, [image.content for image in event.images], event.request.seed)


def _write(output: Path, files: Sequence[bytes], seed: int) -> None:
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


def _format_of(output: Path) -> str:
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
