"""``lithograph serve``: options to configuration, then run."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from longcat.flavour import resolve
from longcat.logs import LOG_FORMATS, set_up_logging
from longcat.storage import open_storage
from service.config import AdapterConfig, JobConfig, ModelConfig, ServiceConfig
from service.options import model_options, storage_options


@click.command()
@click.option("--host", type=click.Choice(["127.0.0.1", "0.0.0.0", "::"]), default="127.0.0.1", show_default=True,  # noqa: S104
              help="Address to listen on.")  # fmt: skip
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on.")
@model_options
@storage_options
@click.option("--adapter-slots", type=int, default=8, show_default=True,
              help="Adapters that can be in use at once; each takes memory on the device.")  # fmt: skip
@click.option("--adapter-rank", type=int, default=64, show_default=True, help="Largest rank that is served.")
@click.option("--adapter-poll-seconds", type=float, default=2.0, show_default=True, help="Between looks at storage.")
@click.option("--adapter-cache-mib", type=int, default=2048, show_default=True, help="Adapters kept in main memory.")
@click.option("--adapter-disk-mib", type=int, default=10240, show_default=True, help="Adapters kept on disk.")
@click.option("--require-adapter", "required", multiple=True, metavar="NAME",
              help="Not ready without it; may be given several times.")  # fmt: skip
@click.option("--import-from", type=click.Path(exists=True, file_okay=False, path_type=Path), multiple=True,
              help="Directory whose LoRA files /v1/load_lora_adapter may publish; may be given several times.")  # fmt: skip
@click.option("--admin-key", help="Asked for by whatever changes adapters over HTTP, as a bearer token.")
@click.option(
    "--max-pixels", type=int, help="Largest width times height of a request. [default: what the model was made for]"
)
@click.option("--max-steps", type=int, default=100, show_default=True, help="Most denoising steps of a request.")
@click.option("--max-images", type=int, default=8, show_default=True, help="Most pictures of a request.")
@click.option("--max-rows", type=int, default=12, show_default=True,
              help="Most rows in one forward at the default size (a picture has two): bounds memory.")  # fmt: skip
@click.option("--max-queue", type=int, default=64, show_default=True,
              help="Most requests queued or being drawn; beyond it, 429.")  # fmt: skip
@click.option("--max-body-bytes", type=int, default=64 * 1024, show_default=True, help="Largest request body.")
@click.option("--timeout-seconds", type=float, default=600.0, show_default=True,
              help="From a request's arrival to its reply; past it, 504.")  # fmt: skip
@click.option("--linger-seconds", type=float, default=0.0, show_default=True,
              help="How long requests are still taken after SIGTERM: until load balancers have gone elsewhere.")  # fmt: skip
@click.option("--grace-seconds", type=float, default=60.0, show_default=True,
              help="How long requests may take to finish then.")  # fmt: skip
@click.option("--max-jobs", type=int, default=1000, show_default=True, help="Most asynchronous jobs remembered.")
@click.option("--jobs-mib", type=int, default=256, show_default=True, help="Memory for their pictures.")
@click.option("--job-ttl-seconds", type=float, default=3600.0, show_default=True,
              help="How long they are remembered after their end.")  # fmt: skip
@click.option("--webhook-secret", help="What webhooks are signed with, in base64: openssl rand -base64 32.")
@click.option("--webhook-host", "webhook_hosts", multiple=True, metavar="HOST[:PORT]",
              help="Whom webhooks may call; may be given several times. Without it, none are sent.")  # fmt: skip
@click.option("--otlp-endpoint", envvar="OTEL_EXPORTER_OTLP_ENDPOINT", metavar="URL",
              help="Send traces there, by OTLP over HTTP: http://collector:4318; OTEL_* variables count.")  # fmt: skip
@click.option("--log-format", type=click.Choice(LOG_FORMATS), default="auto", show_default=True,
              help="auto is text on a terminal, else JSON lines.")  # fmt: skip
def serve(
    adapters: str | None, adapters_endpoint_url: str | None, adapter_slots: int, adapter_rank: int,
    adapter_poll_seconds: float, adapter_cache_mib: int, adapter_disk_mib: int, required: tuple[str, ...],
    import_from: tuple[Path, ...], max_jobs: int, jobs_mib: int, job_ttl_seconds: float, webhook_secret: str | None,
    webhook_hosts: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    """Serve POST /generate over HTTP."""
    set_up_logging(options["log_format"])
    with tempfile.TemporaryDirectory(prefix="lithograph-") as folder:
        metrics_dir = Path(folder, "metrics")
        metrics_dir.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)
        model = {name: options.pop(name) for name in ModelConfig.__dataclass_fields__}
        storage = adapters and AdapterConfig(
            uri=adapters,
            endpoint_url=adapters_endpoint_url,
            slots=adapter_slots,
            rank=adapter_rank,
            required=required,
            import_from=import_from,
            poll_seconds=adapter_poll_seconds,
            cache_mib=adapter_cache_mib,
            disk_mib=adapter_disk_mib,
            folder=Path(folder, "adapters"),
        )
        if required and not storage:
            raise click.UsageError("--require-adapter needs --adapters")
        jobs = JobConfig(
            most=max_jobs,
            mib=jobs_mib,
            ttl_seconds=job_ttl_seconds,
            webhook_secret=webhook_secret,
            webhook_hosts=tuple(host.lower() for host in webhook_hosts),
        )
        sys.exit(_run(ServiceConfig(model=ModelConfig(**model), adapters=storage or None, jobs=jobs, **options)))


def _run(config: ServiceConfig) -> int:
    """Serve until SIGTERM, Ctrl-C or the end of a process that cannot be started again; return the exit code."""
    if config.adapters is not None:
        open_storage(config.adapters.uri, endpoint_url=config.adapters.endpoint_url)  # a wrong URI is refused at once
    from service.api import GenerateAPI, Server  # after PROMETHEUS_MULTIPROC_DIR is set

    flavour = resolve(config.model.flavour, revision=config.model.revision)
    return Server(GenerateAPI(config, flavour, config.limits(flavour.settings))).serve()
