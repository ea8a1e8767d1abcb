"""``lithograph server``: options to configuration, then run."""

import fcntl
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import uvicorn

from longcat.errors import ConfigError
from longcat.logs import set_up_logging
from longcat.options import command_options, configure
from longcat.problem import reason_of
from longcat.storage.opening import open_storage
from service.http.edge.server import uvicorn_arguments
from service.http.edge.settings import HttpConfig
from studio.app import create_app
from studio.config import StudioConfig
from studio.web.error_pages import error_outside_pages

_SHUTDOWN_SECONDS = 2
"""Time for open connections to end: pages keep a stream open for as long as they are shown."""


@click.command()
@command_options(StudioConfig)
def server(**options: Any) -> None:
    """Serve the studio, a web interface, on port 8001: generate, train, manage adapters."""
    set_up_logging()
    config = configure(StudioConfig, options)
    open_storage(config.adapters_uri, endpoint_url=config.adapters_endpoint_url)  # reject a wrong URI at once
    # uvicorn raises the signal again once it has shut down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with _locked(config.home):
        click.echo(f"Lithograph studio on http://{_in_url(config.host)}:{config.port}", err=True)
        uvicorn.run(
            create_app(config), host=config.host, port=config.port, log_level="warning",
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            **uvicorn_arguments(HttpConfig(), write_error=error_outside_pages),
        )  # fmt: skip


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Create the directory and lock it against other studios. Raises ``ConfigError``."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = (home / "lock").open("a")
    except OSError as error:
        raise ConfigError(
            "home_not_writable",
            "cannot be written ({reason})",
            remedy="give another directory",
            field="--home",
            value=str(home),
            reason=reason_of(error),
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                "home_in_use",
                "in use by another studio",
                remedy="stop that one, or give another directory",
                field="--home",
                value=str(home),
            ) from error
        yield


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
