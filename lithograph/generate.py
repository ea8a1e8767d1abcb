"""``lithograph generate``: a prompt into a file, drawn here or by a running service."""

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from longcat.errors import RecipeError, UserError
from longcat.flavour import HUB_IDS, Flavour, resolve
from longcat.tokenizer import load_tokenizer, plain_ids
from service.config import AdapterConfig, ModelConfig
from service.limits import Limits
from service.options import model_options, storage_options
from service.picture import read_recipe
from service.refusals import check_request
from service.schema import (
    MAX_ADAPTERS,
    AdapterChoice,
    GenerateRequest,
    GenerateResponse,
    ResolvedRequest,
    StepEvent,
)

_PERCENT = 100


@click.command()
@click.argument("prompt", required=False)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="picture.png", show_default=True,
              help="File to write; .png, .jpg or .webp. Several pictures get -0, -1, ... before the ending.")  # fmt: skip
@click.option("--negative-prompt", help="What to keep away from.")
@click.option("--width", type=int, help="In px, a multiple of 64.")
@click.option("--height", type=int, help="In px, a multiple of 64.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance-scale", type=float, help="Classifier-free guidance; 1 or less turns it off.")
@click.option("--seed", type=int, help="Picture i is drawn from seed + i. Random if absent.")
@click.option("--num-images", type=int, help="Pictures to draw.")
@click.option("--cfg-renorm/--no-cfg-renorm", default=None, help="Keep guided norms at most the conditional ones.")
@click.option("--rewrite-prompt", is_flag=True, default=None, help="Let the text encoder enrich the prompt first.")
@click.option("--adapter", "uses", multiple=True, metavar="NAME[@VERSION][:SCALE]",
              help="A LoRA adapter from --adapters, as in ink, ink@3 or ink@3:0.8; may be given several times.")  # fmt: skip
@storage_options
@click.option("--server", metavar="URL", help="Have a running service draw it, as in http://127.0.0.1:8000.")
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A PNG that Lithograph made: make the same picture again, byte for byte.")  # fmt: skip
@model_options
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
    server: str | None,
    **options: Any,
) -> None:
    """Draw PROMPT (Chinese or English) into a file; no server needed, but it may do it."""
    source = None if adapters is None else (adapters, adapters_endpoint_url)
    chosen = {name: options.pop(name) for name in ModelConfig.__dataclass_fields__}
    given = {name: value for name, value in options.items() if value is not None}
    if server is not None:
        explicit = _explicit(context, ("recipe", "adapters", "adapters_endpoint_url", *chosen))
        if prompt is None or explicit:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in explicit)
            raise click.UsageError(
                f"--server draws a PROMPT with its own model and adapters: leave out {names or 'nothing'}"
            )
        scales = {choice.name: choice.scale for choice in map(_adapter_choice, uses)}
        _draw_there(server, prompt, given | {"adapters": scales}, output)
        return
    if recipe is not None:
        explicit = _explicit(context, (*_FIXED_BY_RECIPE, *options, "uses"))
        if prompt is not None or explicit:
            raise click.UsageError("--recipe repeats a picture as it is: give no prompt and no drawing options with it")
        follow_flavour = context.get_parameter_source("flavour") is ParameterSource.DEFAULT
        config, flavour, request = _from_recipe(
            recipe, chosen, output, follow_flavour=follow_flavour, has_adapters=source is not None
        )
    elif prompt is not None:
        choices = tuple(_adapter_choice(use) for use in uses)
        fields = {"prompt": prompt, "output_format": _format_of(output), "adapters": choices, **given}
        config = ModelConfig(**chosen)
        flavour = resolve(config.flavour, revision=config.revision)
        request = _resolve(check_request(fields), flavour, has_adapters=source is not None)
    else:
        raise click.UsageError("give a PROMPT, or --recipe PICTURE.png")
    _draw(config, flavour, request, output, source)


def _explicit(context: click.Context, names: Iterable[str]) -> list[str]:
    """Those options that somebody gave."""
    return [name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT]


def _adapter_choice(text: str) -> AdapterChoice:
    """``ink``, ``ink@3`` or ``ink@3:0.8``."""
    name, colon, scale = text.partition(":")
    try:
        return AdapterChoice(name=name, scale=float(scale) if colon else 1.0)
    except ValueError as error:
        raise UserError(
            f"adapter {text!r}: give NAME, NAME@VERSION or NAME:SCALE with a scale from -10 to 10"
        ) from error


_FIXED_BY_RECIPE = ("precision", "text_encoder_precision", "dtype")


def _from_recipe(
    path: Path, chosen: dict[str, Any], output: Path, *, follow_flavour: bool, has_adapters: bool
) -> tuple[ModelConfig, Flavour, ResolvedRequest]:
    """How a picture was drawn. Raises ``RecipeError`` unless the same model is at hand."""
    recipe = read_recipe(path)
    drawn_by = recipe.model
    if _format_of(output) != recipe.request.output_format:
        raise UserError(
            f"output {output}: the recipe is of a {recipe.request.output_format} file; end the name likewise"
        )
    chosen = chosen | {name: getattr(drawn_by, name) for name in _FIXED_BY_RECIPE}
    if follow_flavour:
        # A picture from somewhere must not make this machine download or open whatever it names.
        if drawn_by.flavour not in ("embedded", *HUB_IDS):
            raise RecipeError(
                f"{path} was drawn by {drawn_by.flavour!r}: if you trust that model, name it with --flavour"
            )
        chosen |= {"flavour": drawn_by.flavour, "revision": drawn_by.revision}
    config = ModelConfig(**chosen)
    flavour = resolve(config.flavour, revision=config.revision)
    if flavour.hash != drawn_by.hash:
        raise RecipeError(
            f"{path} was drawn by model {drawn_by.hash[:12]} ({drawn_by.flavour}), and {flavour.name} is "
            f"{flavour.hash[:12]}: name that model with --flavour or --revision"
        )
    if recipe.adapters and not has_adapters:
        names = ", ".join(adapter.reference for adapter in recipe.adapters)
        raise RecipeError(f"{path} was drawn with adapters {names}: say with --adapters where they are")
    fields = {name: getattr(recipe.request, name) for name in ResolvedRequest.model_fields}
    return config, flavour, _resolve(check_request(fields), flavour, has_adapters=has_adapters)


def _resolve(request: GenerateRequest, flavour: Flavour, *, has_adapters: bool) -> ResolvedRequest:
    """A person at their own machine is limited by the model alone."""
    tokenize = plain_ids(load_tokenizer(flavour.folder))
    return Limits.of_model(flavour.settings, has_adapters=has_adapters).resolve(request, tokenize)


def _draw(
    config: ModelConfig,
    flavour: Flavour,
    request: ResolvedRequest,
    output: Path,
    source: tuple[str, str | None] | None,
) -> None:
    """``source``: adapter storage and its endpoint."""
    from service.renderer import Renderer

    steps = request.steps * request.num_images
    with tempfile.TemporaryDirectory(prefix="lithograph-") as folder:
        adapters = None
        if source is not None and request.adapters:
            uri, endpoint_url = source
            adapters = AdapterConfig(uri=uri, endpoint_url=endpoint_url, slots=MAX_ADAPTERS, folder=Path(folder))
        renderer = Renderer(config, flavour, max_rows=8, adapters=adapters)
        with click.progressbar(length=steps, label="drawing", file=sys.stderr) as bar:
            rendered = renderer.render(request, lambda made, total: bar.update(steps * made // total - bar.pos))
    _write(output, rendered.files, request.seed)


def _draw_there(server: str, prompt: str, given: dict[str, Any], output: Path) -> None:
    from lithograph.client import Client

    options: Any = given | {"output_format": _format_of(output)}
    made = 0
    with Client(server) as client, click.progressbar(length=_PERCENT, label="drawing", file=sys.stderr) as bar:
        for event in client.stream(prompt, **options):
            match event:
                case StepEvent():
                    made += 1
                    bar.update(_PERCENT * made // (event.steps * options.get("num_images", 1)) - bar.pos)
                case GenerateResponse():
                    bar.update(_PERCENT - bar.pos)
                    _write(output, [image.content for image in event.images], event.request.seed)


def _write(output: Path, files: Sequence[bytes], seed: int) -> None:
    """Each whole or not at all, numbered if there are several."""
    for index, content in enumerate(files):
        path = output if len(files) == 1 else output.with_stem(f"{output.stem}-{index}")
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"output {path} cannot be written ({error.strerror}); give another with --output"
            ) from error
        click.echo(f"{path} seed {seed + index}")


def _format_of(output: Path) -> str:
    formats = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    if output.suffix.lower() not in formats:
        raise UserError(f"output {output}: end the name in {', '.join(formats)}")
    if not output.parent.is_dir():
        raise UserError(f"output {output}: there is no directory {output.parent}; make it first")
    return formats[output.suffix.lower()]
