"""The configuration of a command: its file, its environment and its arguments."""

import logging
import os
from pathlib import Path

import click

from longcat.logs import log_event
from trainer.config.options import TrainConfig
from trainer.config.reading.assignments import parse_assignments
from trainer.config.reading.file import load_config

_PREFIX = "LITHOGRAPH_TRAIN_"
_NOT_CONFIGURATION = ("CONFIG", "LOG_FORMAT")
_log = logging.getLogger("lithograph.trainer")

config_option = click.option(
    "--config", "path", type=click.Path(dir_okay=False, path_type=Path), envvar=f"{_PREFIX}CONFIG",
    help="Configuration file in SimpleTuner's format; // comments are allowed.",
)  # fmt: skip

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of text; for an error, its code and problems."
)

OPTIONS = {"ignore_unknown_options": True, "allow_extra_args": True}
"""The settings of a command that takes every option of the configuration as an argument."""


def read_config(path: Path | None, arguments: list[str]) -> TrainConfig:
    """Read the configuration from file, environment and arguments; a later one overrides an earlier one."""
    from_environment = {
        key.removeprefix(_PREFIX).lower(): value
        for key, value in os.environ.items()
        if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) not in _NOT_CONFIGURATION
    }
    assigned = parse_assignments([f"{key}={value}" for key, value in from_environment.items()])
    config, warnings = load_config(path, assigned, parse_assignments(arguments))
    for warning in warnings:
        log_event(_log, "config_note", logging.WARNING, note=str(warning))
    return config
