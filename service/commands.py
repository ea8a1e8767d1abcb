"""``lithograph serve`` and ``lithograph generate``: options to configuration, then run."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from longcat.errors import RecipeError, UserError
from longcat.flavour import HUB_IDS, Flavour, resolve
from longcat.logs import set_up_logging
from longcat.precision import Offload
from longcat.storage import open_storage
from longcat.tokenizer import load_tokenizer, plain_ids
from service.config import AdapterConfig, ModelConfig, ServiceConfig
from service.picture import read_recipe
from service.schema import MAX_ADAPTERS, AdapterChoice, GenerateRequest, Limits, ResolvedRequest, check_request

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def _model_options(command: _Command) -> _Command:
    for option in reversed(
        (
            click.option("--flavour", default="embedded", show_default=True,
                         help="final, dev, embedded, a directory or a hub id."),
            click.option("--revision", help="The hub's branch, tag or commit."),
            click.option("--precision", default="no_change", show_default=True,
                         help="The transformer's weights: no_change, int8-quanto, int4-quanto, fp8-quanto, int8-torchao, "
                              "fp8-torchao."),
            click.option("--text-encoder-precision", default="no_change", show_default=True,
                         help="The text encoder's weights, likewise."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
            click.option("--dtype", type=click.Choice(_DTYPES), default="auto", show_default=True,
                         help="What it computes in; auto is float32 on a CPU, else bfloat16."),
            click.option("--offload", type=click.Choice([o.value for o in Offload]), default="none", show_default=True,
                         help="Keep weights in main memory until they are needed: less GPU memory, slower."),
            click.option("--compile", is_flag=True, help="Run the blocks through torch.compile."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _storage_options(command: _Command) -> _Command:
    for option in reversed(
        (
            click.option("--adapters", metavar="URI",
                         help="Where LoRA adapters are: file:///directory or s3://bucket/prefix."),
            click.option("--adapters-endpoint-url", metavar="URL", help="Of an S3 store that is not AWS."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.option("--host", type=click.Choice(["127.0.0.1", "0.0.0.0", "::"]), default="127.0.0.1", show_default=True,  # noqa: S104
              help="Address to listen on.")  # fmt: skip
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on.")
@_model_options
@_storage_options
@click.option("--adapter-slots", type=int, default=8, show_default=True,
              help="Adapters that can be in use at once; each takes memory on the device.")  # fmt: skip
@click.option("--adapter-rank", type=int, default=64, show_default=True, help="Largest rank that is served.")
@click.option("--adapter-poll-seconds", type=float, default=2.0, show_default=True, help="Between looks at storage.")
@click.option("--adapter-cache-mib", type=int, default=2048, show_default=True, help="Adapters kept in main memory.")
@click.option("--adapter-disk-mib", type=int, default=10240, show_default=True, help="Adapters kept on disk.")
@click.option("--require-adapter", "required", multiple=True, metavar="NAME",
              help="Not ready without it; may be given several times.")  # fmt: skip
@click.option("--admin-key", help="Asked for by POST and DELETE under /v1/adapters, as a bearer token.")
@click.option(
    "--max-pixels", type=int, help="Largest width times height of a request. [default: what the model was made for]"
)
@click.option("--max-steps", type=int, default=100, show_default=True, help="Most denoising steps of a request.")
@click.option("--max-images", type=int, default=8, show_default=True, help="Most pictures of a request.")
@click.option("--max-rows", type=int, default=12, show_default=True,
              help="Most rows in one forward at the default size (a picture has two): bounds memory.")  # fmt: skip
@click.option("--max-queue", type=int, default=64, show_default=True,
              help="Most requests queued or being drawn; beyond it, 429.")  # fmt: skip
@click.option("--max-body-bytes", type=int, default=64 * 1024, show_default=True, help="Largest request body.")
@click.option("--timeout-seconds", type=float, default=600.0, show_default=True,
              help="From a request's arrival to its reply; past it, 504.")  # fmt: skip
@click.option("--grace-seconds", type=float, default=60.0, show_default=True,
              help="How long requests may take to finish after SIGTERM.")  # fmt: skip
def serve(
    adapters: str | None, adapters_endpoint_url: str | None, adapter_slots: int, adapter_rank: int,
    adapter_poll_seconds: float, adapter_cache_mib: int, adapter_disk_mib: int, required: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Serve POST /generate over HTTP."""
    set_up_logging()
    with tempfile.TemporaryDirectory(prefix="lithograph-") as folder:
        metrics_dir = Path(folder, "metrics")
        metrics_dir.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)
        model = {name: options.pop(name) for name in ModelConfig.__dataclass_fields__}
        storage = adapters and AdapterConfig(
            uri=adapters,
            endpoint_url=adapters_endpoint_url,
            slots=adapter_slots,
            rank=adapter_rank,
            required=required,
            poll_seconds=adapter_poll_seconds,
            cache_mib=adapter_cache_mib,
            disk_mib=adapter_disk_mib,
            folder=Path(folder, "adapters"),
        )
        if required and not storage:
            raise click.UsageError("--require-adapter needs --adapters")
        sys.exit(_run(ServiceConfig(model=ModelConfig(**model), adapters=storage or None, **options)))


def _run(config: ServiceConfig) -> int:
    """Serve until SIGTERM, Ctrl-C or the end of a process that cannot be started again; return the exit code."""
    if config.adapters is not None:
        open_storage(config.adapters.uri, endpoint_url=config.adapters.endpoint_url)  # a wrong URI is refused at once
    from service.api import GenerateAPI, Server  # after PROMETHEUS_MULTIPROC_DIR is set

    flavour = resolve(config.model.flavour, revision=config.model.revision)
    return Server(GenerateAPI(config, flavour, config.limits(flavour.settings))).serve()


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
@_storage_options
@click.option("--recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A PNG that Lithograph made: make the same picture again, byte for byte.")  # fmt: skip
@_model_options
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
    """Draw PROMPT (Chinese or English) into a file; no server needed."""
    source = None if adapters is None else (adapters, adapters_endpoint_url)
    chosen = {name: options.pop(name) for name in ModelConfig.__dataclass_fields__}
    given = {name: value for name, value in options.items() if value is not None}
    if recipe is not None:
        fixed = (*_FIXED_BY_RECIPE, *options, "uses")
        explicit = {name for name in fixed if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
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
    for index, content in enumerate(rendered.files):
        path = output if len(rendered.files) == 1 else output.with_stem(f"{output.stem}-{index}")
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"output {path} cannot be written ({error.strerror}); give another with --output"
            ) from error
        click.echo(f"{path} seed {request.seed + index}")


def _format_of(output: Path) -> str:
    formats = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    if output.suffix.lower() not in formats:
        raise UserError(f"output {output}: end the name in {', '.join(formats)}")
    if not output.parent.is_dir():
        raise UserError(f"output {output}: there is no directory {output.parent}; make it first")
    return formats[output.suffix.lower()]
