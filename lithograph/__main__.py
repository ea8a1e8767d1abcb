"""The ``lithograph`` command. Each package brings its own subcommands; they are imported when used.

Every option can be given as an environment variable: ``LITHOGRAPH_SERVE_PORT=8123`` is ``serve --port 8123``.
"""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import click

from longcat.errors import LithographError
from longcat.logs import silence_import_noise


@dataclass(frozen=True)
class _Subcommand:
    target: str
    """``module:function``."""
    summary: str
    """Its line in ``lithograph --help``."""


_COMMANDS: Mapping[str, _Subcommand] = {
    "serve": _Subcommand("service.commands:serve", "Serve POST /generate over HTTP."),
    "generate": _Subcommand("lithograph.generate:generate", "Draw a prompt into a file; no server needed."),
    "fetch": _Subcommand("lithograph.fetch:fetch", "Download a model's weights, once, for others to find."),
    "train": _Subcommand("trainer.commands:train", "Train an adapter on captioned pictures."),
    "validate": _Subcommand(
        "trainer.commands:validate", "Draw the validation prompts, with an adapter beside the base."
    ),
    "dataset": _Subcommand("trainer.commands:dataset", "Look at the data before training on it."),
    "plan": _Subcommand("trainer.commands:plan", "How much memory a training takes."),
    "configure": _Subcommand("trainer.commands:configure", "Ask a few questions and write a config.json."),
    "job": _Subcommand("lithograph.job:job", "Train on Kubernetes: render, submit, status, logs, cancel."),
    "server": _Subcommand("studio.commands:server", "Serve the studio, a web page, on port 8001."),
    "adapters": _Subcommand("lithograph.adapters:adapters", "List, import, export, roll back and remove adapters."),
}


class _LazyGroup(click.Group):
    """Imports a subcommand's module when it is run, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="lithograph")
def cli() -> None:
    """Lithograph: draw with LongCat-Image, and teach it new styles."""


def main() -> None:
    """Run the command; a user's mistake is one line, not a stack trace."""
    # Read by OpenMP when torch is imported, here or in a child process: spinning threads starve each other on few cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    silence_import_noise()
    try:
        cli(auto_envvar_prefix="LITHOGRAPH")
    except LithographError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
