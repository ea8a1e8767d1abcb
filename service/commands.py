"""``lithograph serve``: options to configuration, then run."""

import os
import sys
from typing import Any

import click

from longcat.logs import set_up_logging
from longcat.model.flavour import resolve
from longcat.options import command_options, configure
from longcat.storage.opening import open_storage
from service.config import ServiceConfig
from service.flavour_choice import settled
from service.run_folder import METRICS_VARIABLE, run_folder


@click.command()
@command_options(ServiceConfig)
def serve(**options: Any) -> None:
    """Serve POST /generate over HTTP."""
    set_up_logging(options["log_format"])
    with run_folder(os.environ.get(METRICS_VARIABLE)) as (folder, metrics):
        os.environ[METRICS_VARIABLE] = str(metrics)
        config = configure(ServiceConfig, options | {"adapter_folder": folder / "adapters"})
        if options["require_adapter"] and config.adapters is None:
            raise click.UsageError("--require-adapter needs --adapters")
        sys.exit(_run(config))


def _run(config: ServiceConfig) -> int:
    """Serve until SIGTERM, Ctrl-C or the end of a process that cannot be started again; return the exit code."""
    if config.adapters is not None:
        open_storage(
            config.adapters.uri, endpoint_url=config.adapters.endpoint_url
        )  # reject a wrong URI before loading
    from service.process.server import GenerateAPI, Server  # after ``run_folder`` has set PROMETHEUS_MULTIPROC_DIR

    config = config.model_copy(update={"model": settled(config.model)})
    flavour = resolve(config.model.flavour, revision=config.model.revision)
    return Server(GenerateAPI(config, flavour, config.limits(flavour.settings))).serve()
