"""The ``lithograph`` command. A subcommand is imported from its package when it is run.

Every option can be given as an environment variable: ``LITHOGRAPH_SERVE_PORT=8123`` is ``serve --port 8123``.

``lithograph``, the console script, never imports from the working directory. ``python -m lithograph`` does, as every ``-m``
does: where that directory may hold a ``trainer.py`` or ``service/`` of its own, run ``python -P -m lithograph``.
"""

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from typing_extensions import override

from lithograph.terminal import fail
from longcat.checksum import remember_checksums
from longcat.errors import LithographError
from longcat.logs import silence_import_noise
from longcat.process.parent import PARENT_OPTION, stop_with_parent
from longcat.storage.disk import disk_full, is_disk_full, path_of

_STANDARD_ERROR = 2


@dataclass(frozen=True)
class _Subcommand:
    target: str
    """``module:function``."""
    summary: str
    """Its line in ``lithograph --help``."""


_COMMANDS: Mapping[str, _Subcommand] = {
    "serve": _Subcommand("service.commands:serve", "Serve POST /generate over HTTP."),
    "generate": _Subcommand(
        "lithograph.generation.generate:generate", "Generate an image file from a prompt, without a server."
    ),
    "edit": _Subcommand(
        "lithograph.generation.edit:edit", "Change a picture file by a prompt, all of it or what a mask shows."
    ),
    "verify": _Subcommand("lithograph.verify:verify", "Show what a picture file says about how it was made."),
    "fetch": _Subcommand("lithograph.fetch:fetch", "Download a model's weights ahead of serving or training."),
    "train": _Subcommand("trainer.commands.training:train", "Train an adapter on captioned pictures."),
    "distill": _Subcommand(
        "trainer.commands.training:distill", "Make an adapter that needs few steps and no guidance, from prompts alone."
    ),
    "report": _Subcommand(
        "trainer.commands.training:report", "Show the report card of a training: overfitting, best step, copies."
    ),
    "validate": _Subcommand(
        "trainer.commands.training:validate", "Generate the validation prompts with the base and an adapter."
    ),
    "dataset": _Subcommand("trainer.commands.dataset:dataset", "Check training data, and caption pictures."),
    "plan": _Subcommand("trainer.commands.training:plan", "Show the memory that a training takes."),
    "configure": _Subcommand("trainer.commands.training:configure", "Ask a few questions and write a config.json."),
    "job": _Subcommand("lithograph.job:job", "Train on Kubernetes: render, submit, status, logs, cancel."),
    "server": _Subcommand("studio.commands:server", "Serve the studio, a web interface, on port 8001."),
    "keys": _Subcommand("lithograph.access.keys:keys", "Make, list and remove the API keys of a service."),
    "usage": _Subcommand("lithograph.access.usage:usage", "Show what each API key of a service has used."),
    "adapters": _Subcommand("lithograph.adapters:adapters", "List, import, export, roll back and remove adapters."),
}


class _LazyGroup(click.Group):
    """Imports a subcommand's module when it is run, so that ``--help`` is quick."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="lithograph")
@click.option(PARENT_OPTION, type=int, hidden=True, help="Stop when this is no longer the parent process.")
def cli(parent_pid: int | None) -> None:
    """Lithograph: serve and fine-tune LongCat-Image."""
    if parent_pid is not None:
        stop_with_parent(parent_pid)


def _open_standard_streams() -> None:
    """Open the null device for each of the three standard streams that the parent process has closed.

    Without it, Python has no ``sys.stderr``, and the next file or socket would take the number that libraries print to.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _user_cache(environment: Mapping[str, str]) -> Path | None:
    """Return the user's cache directory, by the XDG base directory specification; None for a user without a home."""
    places = Path(environment.get("XDG_CACHE_HOME", "")), Path(os.path.expanduser("~")) / ".cache"
    return next((place for place in places if place.is_absolute()), None)


def main() -> None:
    """Run the command; print a known error as one line for each problem, without a stack trace."""
    _open_standard_streams()
    # Read by OpenMP when torch is imported, here or in a child process: spinning threads starve each other on few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # Read by torch when it first allocates on a GPU: segments that grow leave fewer gaps of sizes that come only once.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # Child processes (the engine, data loading, compilation) do not import from the working directory either.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    silence_import_noise()
    if cache := _user_cache(os.environ):
        remember_checksums(cache / "lithograph")
    try:
        cli(auto_envvar_prefix="LITHOGRAPH")
    except LithographError as error:
        fail(error)
    except OSError as error:
        if not is_disk_full(error):
            raise
        fail(disk_full(path_of(error)))


if __name__ == "__main__":
    main()
