"""``lithograph serve``: options to configuration, then run."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from longcat.logs import set_up_logging
from longcat.model.flavour import resolve
from longcat.options import command_options, configure
from longcat.storage.opening import open_storage
from service.access.keys import ApiKeys
from service.access.usage import create_ledger
from service.config import AdapterConfig, ServiceConfig
from service.memory.flavour_choice import settled
from service.process.engine_start import begin_imports
from service.run_folder import METRICS_VARIABLE, run_folder

log = logging.getLogger("lithograph")

_LOOPBACK = "127.0.0.1"
_OF_ADAPTERS = ("require_adapter", "import_from", "adapter_prefetch", "adapters_endpoint_url")
"""Options that promise something about adapters, which would not be kept without their storage."""


@click.command()
@click.option("--plan", is_flag=True, help="Show the device memory that this takes, part by part; nothing is loaded.")
@click.option(
    "--gpu-gib",
    type=click.FloatRange(min=0, min_open=True),
    help="With --plan: plan for a CUDA GPU with this much memory instead of this machine's device.",
)
@click.option("--json", "as_json", is_flag=True, help="With --plan: print JSON instead of text.")
@command_options(ServiceConfig)
def serve(plan: bool, gpu_gib: float | None, as_json: bool, **options: Any) -> None:
    """Serve POST /generate over HTTP."""
    set_up_logging(options["log_format"])
    if plan:
        _show_plan(configure(ServiceConfig, options | {"adapter_folder": Path()}), gpu_gib, as_json=as_json)
        return
    if gpu_gib is not None or as_json:
        raise click.UsageError("--gpu-gib and --json need --plan")
    if options["adapters"] is None and (given := [name for name in _OF_ADAPTERS if options[name]]):
        raise click.UsageError(f"--{given[0].replace('_', '-')} needs --adapters")
    with (
        run_folder(os.environ.get(METRICS_VARIABLE), temporary=os.environ.get("TMPDIR")) as (folder, metrics),
        _metrics_in(metrics),
    ):
        config = configure(ServiceConfig, options | {"adapter_folder": folder / "adapters"})
        sys.exit(_run(config, folder / "adapters"))


@contextlib.contextmanager
def _metrics_in(metrics: Path) -> Iterator[None]:
    """Have prometheus-client put metrics there, also those of child processes."""
    before = os.environ.get(METRICS_VARIABLE)
    os.environ[METRICS_VARIABLE] = str(metrics)
    try:
        yield
    finally:
        if before is None:
            del os.environ[METRICS_VARIABLE]
        else:
            os.environ[METRICS_VARIABLE] = before


def _show_plan(config: ServiceConfig, gpu_gib: float | None, *, as_json: bool) -> None:
    from service.memory.forecast import forecast

    made = forecast(config, gpu_bytes=None if gpu_gib is None else int(gpu_gib * 2**30))
    click.echo(json.dumps(made.as_json(), indent=1) if as_json else made.text())


def _run(config: ServiceConfig, adapter_folder: Path) -> int:
    """Serve until SIGTERM, Ctrl-C or the end of a process that cannot be started again; return the exit code.

    ``adapter_folder``: for downloads of the model's own adapters, where no other adapters are configured.
    """
    # Reject what is wrong before anything is loaded.
    if config.access.api_keys_file is not None:
        ApiKeys.read(config.access.api_keys_file)
    if config.access.state_dir is not None:
        create_ledger(config.access.state_dir)
    if config.adapters is not None:
        open_storage(config.adapters.uri, endpoint_url=config.adapters.endpoint_url)
    if config.jobs.storage is not None:
        open_storage(config.jobs.storage, endpoint_url=config.jobs.endpoint_url)
    begin_imports(engine.device for engine in config.engines)
    from service.process.server import GenerateAPI, Server  # after ``run_folder`` has set PROMETHEUS_MULTIPROC_DIR

    config = config.model_copy(update={"model": settled(config.engines[0])})
    flavour = resolve(config.model.flavour, revision=config.model.revision)
    if config.adapters is None and flavour.adapters is not None:
        own = AdapterConfig(uri=flavour.adapters.as_uri(), label=flavour.adapters_label, folder=adapter_folder)
        config = config.model_copy(update={"adapters": own})
    if config.host != _LOOPBACK and config.access.api_keys_file is None:
        log.warning(
            "listening on %s without API keys: whoever reaches port %d can generate pictures; give --api-keys-file, or "
            "put a proxy with authentication in front",
            config.host,
            config.port,
        )
    return Server(GenerateAPI(config, flavour, config.limits(flavour))).serve()
