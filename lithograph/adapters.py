"""``lithograph adapters``: what is in storage, into and out of it, and what a name means.

Only ``import`` and ``export`` need torch, and only they import it.
"""

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from safetensors import SafetensorError

from lithograph.table import echo_table
from longcat import adapter
from longcat.errors import AdapterError, LithographError, StorageMissingError, UserError
from longcat.storage import Storage, open_storage

_Command = TypeVar("_Command", bound=Callable[..., Any])
_COLUMNS = ("NAME", "LATEST", "VERSIONS", "RANK", "MODULES", "BASE", "CREATED")


def _storage_options(command: _Command) -> _Command:
    for option in (
        click.option("--endpoint-url", envvar="LITHOGRAPH_ADAPTERS_ENDPOINT_URL", show_envvar=True,
                     help="Of an S3 store that is not AWS."),
        click.option("--storage", "storage_uri", metavar="URI", required=True, envvar="LITHOGRAPH_ADAPTERS_STORAGE",
                     show_envvar=True, help="Where adapters are: file:///directory or s3://bucket/prefix."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def adapters() -> None:
    """Look after the adapters in storage.

    An adapter is named like ink, which means its latest version, or ink@3.
    """


@adapters.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_storage_options
def list_(as_json: bool, storage_uri: str, endpoint_url: str | None) -> None:
    """List adapters."""
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    versions = defaultdict(list)
    for name, version in adapter.list_versions(storage):
        versions[name].append(version)
    found = [_summary(storage, name, sorted(versions[name])) for name in sorted(versions)]
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    if not found:
        click.echo(f"no adapters at {storage.uri}", err=True)
        return
    echo_table([_COLUMNS, *(_row(summary) for summary in found)])
    for summary in found:
        if "error" in summary:
            click.echo(f"warning: {summary['error']}", err=True)


@adapters.command()
@click.argument("reference", metavar="NAME[@VERSION]")
@_storage_options
def show(reference: str, storage_uri: str, endpoint_url: str | None) -> None:
    """Show everything that is known about one version, as JSON."""
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    click.echo(adapter.find(storage, adapter.parse_reference(reference)).model_dump_json(indent=1))


@adapters.command("import")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True, help="What requests will call it.")
@click.option("--flavour", default="embedded", show_default=True,
              help="The model that it was trained on: final, dev, embedded, a directory or a hub id.")  # fmt: skip
@click.option("--revision", help="The hub's branch, tag or commit.")
@click.option(
    "--trigger", "triggers", multiple=True, metavar="WORD", help="A word that calls its style up; repeatable."
)
@click.option("--max-rank", type=click.IntRange(1), default=128, show_default=True, help="The largest that is served.")
@click.option("--no-latest", is_flag=True, help="Let the name go on meaning what it means.")
@_storage_options
def import_(
    path: Path, name: str, flavour: str, revision: str | None, triggers: tuple[str, ...], max_rank: int, no_latest: bool,
    storage_uri: str, endpoint_url: str | None,
) -> None:  # fmt: skip
    """Publish a LoRA that another program wrote.

    PATH is a safetensors file or a directory with one: SimpleTuner's, diffusers', the official trainer's, ComfyUI's or
    kohya's.
    """
    _check_name(name)
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    from longcat.flavour import resolve

    base = resolve(flavour, revision=revision)
    from longcat.foreign import flavour_targets, read_foreign
    from longcat.lora import draft_of, publish_lora

    foreign = read_foreign(path, flavour_targets(base), max_rank=max_rank)
    draft = draft_of(foreign.weights, base, origin=foreign.origin, trigger_words=triggers)
    manifest = publish_lora(storage, name, draft, foreign.weights)
    if not no_latest:
        adapter.set_latest(storage, name, manifest.version, only_forward=True)
    assumed = "" if foreign.says_alpha else " (the file says none: the rank, as its program takes it)"
    click.echo(
        f"{manifest.reference}: {manifest.origin} format, {len(manifest.target_modules)} modules, rank {manifest.rank}, "
        f"alpha {manifest.alpha:g}{assumed}{', DoRA' if manifest.use_dora else ''}"
    )


@adapters.command()
@click.argument("reference", metavar="NAME[@VERSION]")
@click.option("--format", "format_", type=click.Choice(["diffusers", "comfyui"]), default="diffusers", show_default=True,
              help="SimpleTuner reads diffusers'.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@_storage_options
def export(
    reference: str, format_: str, output: Path, force: bool, storage_uri: str, endpoint_url: str | None
) -> None:  # fmt: skip
    """Write an adapter as a file for other programs."""
    if output.exists() and not force:
        raise UserError(f"output {output} is there already: give another, or --force")
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    manifest = adapter.find(storage, adapter.parse_reference(reference))
    from longcat.export import WRITERS
    from longcat.lora import load_lora

    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as scratch:
            written = Path(scratch, "written.safetensors")
            WRITERS[format_](load_lora(adapter.fetch(storage, manifest, Path(scratch))), written)
            written.chmod(0o644)  # safetensors makes it 0600, and other programs may run as other users
            (os.replace if force else os.link)(written, output)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"output {output} cannot be written ({reason}); give another with --output") from error
    click.echo(f"{output}: {manifest.reference} in {format_} format")


@adapters.command()
@click.argument("name")
@click.option("--to", "version", type=click.IntRange(1), metavar="VERSION", help="[default: the one before the latest]")
@_storage_options
def rollback(name: str, version: int | None, storage_uri: str, endpoint_url: str | None) -> None:
    """Let NAME mean an earlier version, or any other."""
    _check_name(name)
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    if version is None:
        version = adapter.previous_version(storage, name)
    manifest = adapter.find(storage, adapter.Reference(name=name, version=version))
    adapter.set_latest(storage, name, manifest.version)
    click.echo(f"{name} means {manifest.reference}")


@adapters.command()
@click.argument("reference", metavar="NAME[@VERSION]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_storage_options
def remove(reference: str, yes: bool, storage_uri: str, endpoint_url: str | None) -> None:
    """Remove one version, or all of an adapter, for good."""
    chosen = adapter.parse_reference(reference)
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    if not yes:
        what = reference if chosen.version else f"{reference} with all its versions"
        click.confirm(f"Remove {what} from {storage.uri} for good?", abort=True)
    if chosen.version is None:
        adapter.remove_adapter(storage, chosen.name)
    else:
        adapter.remove_version(storage, chosen.name, chosen.version)
    click.echo(f"removed {reference}")


def _check_name(name: str) -> None:
    if adapter.parse_reference(name).version is not None:
        raise AdapterError(f"adapter {name!r}: give the name alone, without a version")


def _summary(storage: Storage, name: str, versions: Sequence[int]) -> dict[str, Any]:
    """One adapter in the list: its latest version, or the last if none is. What is broken says so and hides no others."""
    summary: dict[str, Any] = {"name": name, "latest": None, "versions": list(versions)}
    try:
        try:
            summary["latest"] = adapter.latest_version(storage, name)
        except StorageMissingError:  # nothing was made the latest, which is fine
            manifest = adapter.read_manifest(storage, name, versions[-1])
        else:
            manifest = adapter.read_manifest(storage, name, summary["latest"])
    except LithographError as error:
        return summary | {"error": str(error)}
    said = manifest.model_dump(mode="json", include={"rank", "alpha", "base", "created", "origin", "trigger_words"})
    return summary | said | {"modules": len(manifest.target_modules)}


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    versions = summary["versions"]
    latest = str(summary["latest"] or "-")
    shown = ",".join(map(str, versions)) if len(versions) <= 6 else f"{versions[0]}..{versions[-1]} ({len(versions)})"
    if "error" in summary:
        return summary["name"], latest, shown, "-", "-", "-", "-"
    base = f"{summary['base']['flavour']} {summary['base']['hash'][:8]}"
    created = summary["created"][:16].replace("T", " ")
    return summary["name"], latest, shown, str(summary["rank"]), str(summary["modules"]), base, created
