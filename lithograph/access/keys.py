"""``lithograph keys``: make, list and remove the API keys of a service, in the file that ``--api-keys-file`` names."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import click

from lithograph.terminal import echo_table
from longcat.storage.atomic import write_atomically
from longcat.storage.disk import writing
from service.access.caller import Role
from service.access.keys import ApiKey, ApiKeys, make_key
from service.wire.schema import NORMAL, PRIORITIES

_COLUMNS = ("NAME", "ROLES", "ADAPTERS", "SHARE", "PRIORITY", "REQUESTS", "PIXEL-STEPS/MIN", "CREATED")

_file_option = click.option(
    "--file", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, envvar="LITHOGRAPH_API_KEYS_FILE",
    show_envvar=True, metavar="FILE", help="File of API keys. It holds hashes, never a key.",
)  # fmt: skip


@click.group()
def keys() -> None:
    """Manage the API keys of a service.

    A running service follows changes of the file within a second.
    """


@keys.command()
@click.argument("name")
@_file_option
@click.option("--role", "roles", multiple=True, type=click.Choice([str(role) for role in Role]),
              help="What the key allows: generate, adapters (load, publish, remove) or admin. Repeatable; by default "
              "generate.")  # fmt: skip
@click.option("--adapters", "patterns", multiple=True, metavar="PATTERN",
              help="Adapters that the key may use and see, such as 'team-a-*'. Repeatable; by default all.")  # fmt: skip
@click.option("--share", type=float, default=1.0, show_default=True,
              help="Part of the device while other keys wait, relative to their shares.")  # fmt: skip
@click.option("--highest-priority", "priority", type=click.Choice(PRIORITIES), default=NORMAL, show_default=True,
              help="The highest priority that its requests may have.")  # fmt: skip
@click.option("--max-requests", "requests", type=int, help="Most requests under way at a time; by default any number.")
@click.option("--pixel-steps-per-minute", type=int, metavar="INTEGER",
              help="Most work a minute: width x height x steps of each picture, twice with guidance.")  # fmt: skip
def add(name: str, path: Path, roles: tuple[str, ...], patterns: tuple[str, ...], **allowance: object) -> None:
    """Make a key and print it. It is shown this once: the file keeps its hash."""
    secret, entry = make_key(name, roles=roles or (str(Role.GENERATE),), adapters=patterns or None, **allowance)
    _edit(path, lambda known: known.with_key(entry))
    click.echo(secret)
    click.echo(f"key {name} is in {path}; it is not shown again", err=True)


@keys.command("list")
@_file_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(path: Path, as_json: bool) -> None:
    """List keys: their names, roles, adapters and limits."""
    known = ApiKeys.read(path).keys
    if as_json:
        fields = [key.model_dump(mode="json", exclude={"sha256"}) for key in known]
        click.echo(json.dumps(fields, indent=1, ensure_ascii=False))
        return
    echo_table([_COLUMNS, *map(_row, known)])


@keys.command()
@click.argument("name")
@_file_option
def remove(name: str, path: Path) -> None:
    """Remove a key: requests with it are refused within a second."""
    _edit(path, lambda known: known.without(name))
    click.echo(f"removed {name}", err=True)


def _edit(path: Path, edit: Callable[[ApiKeys], ApiKeys]) -> None:
    """Replace the file as a whole, under a lock of its directory, so that no change of another process is lost."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = ApiKeys.read(path) if path.exists() else ApiKeys()
        write_atomically(Path(os.path.realpath(path)), edit(known).to_json().encode())
    finally:
        os.close(folder)


def _row(key: ApiKey) -> tuple[str, ...]:
    adapters = "all" if key.adapters is None else ", ".join(key.adapters) or "none"
    limits = ("any" if limit is None else str(limit) for limit in (key.requests, key.pixel_steps_per_minute))
    created = "" if key.created is None else key.created.date().isoformat()
    return key.name, ", ".join(key.roles), adapters, f"{key.share:g}", key.priority, *limits, created
