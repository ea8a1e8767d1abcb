"""``lithograph server``: options to configuration, then run."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import uvicorn

from longcat.errors import UserError
from longcat.logs import set_up_logging
from longcat.storage import open_storage
from studio.app import create_app
from studio.cluster_settings import read_cluster_settings
from studio.config import StudioConfig

_SHUTDOWN_SECONDS = 2
"""Pages keep a stream open for as long as they are shown."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on; anything but loopback needs a token.")  # fmt: skip
@click.option("--port", type=int, default=8001, show_default=True, help="Port to listen on.")
@click.option("--token", help="What browsers log in with, and programs send as a bearer token.")
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), default="~/.local/share/lithograph",
              show_default=True, help="Everything that the studio remembers.")  # fmt: skip
@click.option("--service-url", metavar="URL", help="A running service. [default: one of its own]")
@click.option("--service-admin-key", help="What that service asks for before it changes adapters.")
@click.option("--flavour", default="embedded", show_default=True,
              help="What its own service serves: embedded, final, dev, a directory or a hub id. Further options of "
                   "`lithograph serve` can be given as LITHOGRAPH_SERVE_… in the environment.")  # fmt: skip
@click.option("--adapters", metavar="URI",
              help="Adapter storage, as the service reads it. [default: a directory below --home]")  # fmt: skip
@click.option("--adapters-endpoint-url", metavar="URL", help="Of an S3 store that is not AWS.")
@click.option("--data-root", "data_roots", multiple=True, metavar="DIR",
              type=click.Path(file_okay=False, exists=True, path_type=Path),
              help="Folder below which datasets may be picked, repeatable. [default on loopback: your home]")  # fmt: skip
@click.option("--parallel-jobs", type=int, default=1, show_default=True,
              help="Trainings at once on this machine; the others wait.")  # fmt: skip
@click.option("--stop-jobs", is_flag=True,
              help="When it stops, trainings on this machine save and stop, and go on with the next studio: for containers, "
                   "where they would be killed. [default: they outlive it]")  # fmt: skip
@click.option("--cluster", metavar="FILE|JSON",
              help="Offer a Kubernetes cluster for trainings: what they ask of it, as {} or {\"gpus\": 1, …}.")  # fmt: skip
@click.option("--max-upload-mib", type=int, default=512, show_default=True, help="Largest upload.")
def server(home: Path, cluster: str | None, **options: Any) -> None:
    """Serve the studio, a web page, on port 8001: draw, train, look after adapters."""
    set_up_logging()
    settings = read_cluster_settings(cluster) if cluster else None
    config = StudioConfig(home=home.expanduser().absolute(), cluster=settings, **options)
    open_storage(config.adapters_uri, endpoint_url=config.adapters_endpoint_url)  # a wrong URI is refused at once
    with _home_of_ours(config.home):
        click.echo(f"Lithograph studio on http://{_shown(config.host)}:{config.port}", err=True)
        uvicorn.run(
            create_app(config), host=config.host, port=config.port, log_level="warning", access_log=False,
            server_header=False, timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )  # fmt: skip


@contextmanager
def _home_of_ours(home: Path) -> Iterator[None]:
    """Make the directory, and keep other studios out of it. Raises ``UserError``."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        stream = (home / "lock").open("a")
    except OSError as error:
        raise UserError(f"home {home} cannot be written ({error.strerror}); give another with --home") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"home {home} is in use by another studio; stop it, or give another with --home") from error
        yield


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
