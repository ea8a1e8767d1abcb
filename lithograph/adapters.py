"""``lithograph adapters``: list, import, export, roll back and remove adapters in storage.

Only ``import`` and ``export`` need torch, and only they import it.
"""

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from safetensors import SafetensorError

from lithograph.output import output_error
from lithograph.terminal import echo_table, fail
from longcat.adapter import artifact as adapter
from longcat.adapter.artifact import fetch
from longcat.adapter.publishing import remove_adapter, remove_version, set_latest
from longcat.adapter.reference import Reference, parse_name, parse_new_name, parse_reference
from longcat.errors import LithographError, StorageMissingError, UserError
from longcat.problem import Problem
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage

_Command = TypeVar("_Command", bound=Callable[..., Any])
_COLUMNS = ("NAME", "LATEST", "VERSIONS", "RANK", "MODULES", "BASE", "CREATED")


def _storage_options(command: _Command) -> _Command:
    for option in (
        click.option("--endpoint-url", envvar="LITHOGRAPH_ADAPTERS_ENDPOINT_URL", show_envvar=True,
                     help="Endpoint of an S3 store other than AWS."),
        click.option("--storage", "storage_uri", metavar="URI", required=True, envvar="LITHOGRAPH_ADAPTERS_STORAGE",
                     show_envvar=True, help="Storage of adapters: file:///directory or s3://bucket/prefix."),
    ):  # fmt: skip
        command = option(command)
    return command


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; for an error, its code and problems.")


@contextmanager
def _errors_as_json(as_json: bool) -> Iterator[None]:
    """Print an error as JSON and exit with 1, with ``--json``."""
    try:
        yield
    except LithographError as error:
        if not as_json:
            raise
        fail(error, as_json=True)


@click.group()
def adapters() -> None:
    """Manage the adapters in storage.

    An adapter is named like ink, which means its latest version, or ink@3.
    """


@adapters.command("list")
@_json_option
@_storage_options
def list_(as_json: bool, storage_uri: str, endpoint_url: str | None) -> None:
    """List adapters."""
    versions = defaultdict(list)
    with _errors_as_json(as_json):
        storage = open_storage(storage_uri, endpoint_url=endpoint_url)
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
@_json_option
@_storage_options
def show(reference: str, as_json: bool, storage_uri: str, endpoint_url: str | None) -> None:
    """Print the manifest of one version, which is JSON with or without --json."""
    with _errors_as_json(as_json):
        chosen = parse_reference(reference)
        manifest = adapter.find(open_storage(storage_uri, endpoint_url=endpoint_url), chosen)
    click.echo(manifest.model_dump_json(indent=1))


@adapters.command("import")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True, help="Name of the adapter in requests.")
@click.option("--flavour", default="embedded", show_default=True,
              help="Model that it was trained on: final, dev, embedded, a directory or a hub id.")  # fmt: skip
@click.option("--revision", help="The hub's branch, tag or commit.")
@click.option(
    "--trigger",
    "triggers",
    multiple=True,
    metavar="WORD",
    help="Trigger word, in place of those in the file. Repeatable.",
)
@click.option("--max-rank", type=click.IntRange(1), default=128, show_default=True, help="Largest rank to accept.")
@click.option("--no-latest", is_flag=True, help="Leave the latest version of the name as it is.")
@_json_option
@_storage_options
def import_(as_json: bool, **given: Any) -> None:
    """Publish a LoRA file of another program.

    PATH is a safetensors file or a directory with one: SimpleTuner's, diffusers', the official trainer's, ComfyUI's or
    kohya's.
    """
    with _errors_as_json(as_json):
        summary = _import(**given)
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    for warning in summary.get("warnings", ()):
        click.echo(f"warning: {Problem.from_json(warning)}", err=True)
    assumed = "" if summary["has_alpha"] else " (the rank, because the file has no alpha)"
    click.echo(
        f"{summary['reference']}: {summary['origin']} format, {summary['modules']} modules, rank {summary['rank']}, "
        f"alpha {summary['alpha']:g}{assumed}{', DoRA' if summary['use_dora'] else ''}"
    )
    if sampling := summary.get("sampling"):
        click.echo(f"made for {sampling['steps']} steps with guidance {sampling['guidance_scale']:g}")


def _import(
    *, path: Path, name: str, flavour: str, revision: str | None, triggers: tuple[str, ...], max_rank: int,
    no_latest: bool, storage_uri: str, endpoint_url: str | None,
) -> dict[str, Any]:  # fmt: skip
    parse_new_name(name)
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    from longcat.model.flavour import resolve

    base = resolve(flavour, revision=revision)
    from longcat.adapter.importing import import_adapter

    imported = import_adapter(
        storage, name, path, base, max_rank=max_rank, trigger_words=triggers, moves_latest=not no_latest
    )
    manifest = imported.manifest
    return {
        "reference": str(manifest.reference), "origin": manifest.origin, "modules": len(manifest.target_modules),
        "rank": manifest.rank, "alpha": manifest.alpha, "has_alpha": imported.has_alpha, "use_dora": manifest.use_dora,
        "trigger_words": list(manifest.trigger_words),
        **({} if manifest.sampling is None else {"sampling": manifest.sampling.model_dump()}),
        **({"warnings": [warning.to_json() for warning in imported.warnings]} if imported.warnings else {}),
    }  # fmt: skip


@adapters.command()
@click.argument("reference", metavar="NAME[@VERSION]")
@click.option("--format", "format_", type=click.Choice(["diffusers", "comfyui", "lycoris"]), default="diffusers",
              show_default=True, help="SimpleTuner reads diffusers', and lycoris for LoKr and LoHa.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File to write.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@_storage_options
def export(
    reference: str, format_: str, output: Path, force: bool, storage_uri: str, endpoint_url: str | None
) -> None:  # fmt: skip
    """Write an adapter as a file for other programs."""
    if output.exists() and not force:
        raise UserError(
            "output_exists",
            "exists already",
            remedy="give another file, or --force",
            field="--output",
            value=str(output),
        )
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    manifest = adapter.find(storage, parse_reference(reference))
    from longcat.adapter.export import WRITERS
    from longcat.adapter.verification import load_version
    from longcat.adapter.weights.usage import usage_header

    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as scratch:
            written = Path(scratch, "written.safetensors")
            weights = load_version(fetch(storage, manifest, Path(scratch)), manifest)
            header = usage_header(sampling=manifest.sampling, trigger_words=manifest.trigger_words)
            WRITERS[format_](weights, written, header)
            written.chmod(0o644)  # safetensors creates it with mode 0600, but other programs may run as other users
            if not force:
                output.open("xb").close()  # fails if another program has created the file meanwhile
            os.replace(written, output)
    except (OSError, SafetensorError) as error:
        raise output_error(output, error) from error
    click.echo(f"{output}: {manifest.reference} in {format_} format")


@adapters.command()
@click.argument("name")
@click.option("--to", "version", type=click.IntRange(1), metavar="VERSION", help="[default: the one before the latest]")
@_storage_options
def rollback(name: str, version: int | None, storage_uri: str, endpoint_url: str | None) -> None:
    """Make an earlier version of NAME its latest, or any other."""
    parse_name(name)
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    if version is None:
        version = adapter.previous_version(storage, name)
    manifest = adapter.find(storage, Reference(name=name, version=version))
    set_latest(storage, name, manifest.version)
    click.echo(f"{name} means {manifest.reference}")


@adapters.command()
@click.argument("reference", metavar="NAME[@VERSION]")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_storage_options
def remove(reference: str, yes: bool, storage_uri: str, endpoint_url: str | None) -> None:
    """Remove one version, or all versions, of an adapter permanently."""
    chosen = parse_reference(reference)
    storage = open_storage(storage_uri, endpoint_url=endpoint_url)
    if not yes:
        what = reference if chosen.version else f"{reference} with all its versions"
        click.confirm(f"Remove {what} from {storage.uri} permanently?", abort=True)
    if chosen.version is None:
        remove_adapter(storage, chosen.name)
    else:
        remove_version(storage, chosen.name, chosen.version)
    click.echo(f"removed {reference}")


def _summary(storage: Storage, name: str, versions: Sequence[int]) -> dict[str, Any]:
    """Return one adapter of the list: its latest version, else its last. A broken one has an ``error``."""
    summary: dict[str, Any] = {"name": name, "latest": None, "versions": list(versions)}
    try:
        try:
            summary["latest"] = adapter.latest_version(storage, name)
        except StorageMissingError:  # the name has no latest version, which is valid
            manifest = adapter.read_manifest(storage, name, versions[-1])
        else:
            manifest = adapter.read_manifest(storage, name, summary["latest"])
    except LithographError as error:
        return summary | {"error": str(error)}
    fields = manifest.model_dump(mode="json", include={"rank", "alpha", "base", "created", "origin", "trigger_words"})
    return summary | fields | {"modules": len(manifest.target_modules)}


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    versions = summary["versions"]
    latest = str(summary["latest"] or "-")
    shown = ",".join(map(str, versions)) if len(versions) <= 6 else f"{versions[0]}..{versions[-1]} ({len(versions)})"
    if "error" in summary:
        return summary["name"], latest, shown, "-", "-", "-", "-"
    base = f"{summary['base']['flavour']} {summary['base']['hash'][:8]}"
    created = summary["created"][:16].replace("T", " ")
    return summary["name"], latest, shown, str(summary["rank"]), str(summary["modules"]), base, created
