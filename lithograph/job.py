"""``lithograph job``: a training as a Kubernetes Job, rendered, submitted, followed and cancelled."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from lithograph.table import echo_table
from longcat.errors import LithographError
from studio.cluster import Cluster, JobStatus, connect
from studio.training_job import TrainingJob, default_image
from trainer.config_file import load_config, parse_assignments

_Command = TypeVar("_Command", bound=Callable[..., Any])
_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}
_BAD_CONFIG = 78
_COLUMNS = ("NAME", "STATE", "EXIT", "FAILURES", "AGE", "MESSAGE")


def _all_of(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_cluster_options = _all_of(
    click.option("--kubeconfig", envvar="KUBECONFIG", show_envvar=True, metavar="PATH",
                 help="Default: the pod's own account in a cluster, else ~/.kube/config."),
    click.option("--context", help="Of the kubeconfig; default: its current one."),
    click.option("-n", "--namespace", help="Default: the context's, or the pod's."),
)  # fmt: skip

_job_options = _all_of(
    click.option("--config", "path", type=click.Path(dir_okay=False, path_type=Path), required=True,
                 help="As for `lithograph train`; its paths are the pod's: below /data, /adapters, /output, /models."),
    click.option("--name", required=True, help="The Job's; the same name again goes on from its checkpoint."),
    click.option("--image", default=default_image, show_default="lithograph-trainer of this version",
                 help="The trainer's image."),
    click.option("--gpus", type=int, default=0, show_default=True, help="nvidia.com/gpu."),
    click.option("--cpu", default="2", show_default=True, help="Cores requested, and the limit, as 2 or 500m."),
    click.option("--memory", default="4Gi", show_default=True, help="Requested, and the limit."),
    click.option("--data", "data_claim", metavar="CLAIM", help="PersistentVolumeClaim with the pictures, at /data."),
    click.option("--adapters", "adapters_claim", metavar="CLAIM", help="With the adapters that are served, at /adapters. "
                 "Default: lithograph-adapters."),
    click.option("--output", "training_claim", metavar="CLAIM", help="For checkpoints and caches, at /output. "
                 "Default: lithograph-training."),
    click.option("--models", "models_claim", metavar="CLAIM", help="That keeps downloaded weights, at /models."),
    click.option("--secret", metavar="NAME", help="Secret whose keys become the environment: AWS_ACCESS_KEY_ID, HF_TOKEN."),
    click.option("--service-account", metavar="NAME", help="For S3 without keys. Default: lithograph-trainer."),
    click.option("--queue", metavar="NAME", help="Kueue's LocalQueue."),
    click.option("--deadline-seconds", type=int, default=86_400, show_default=True, help="It has failed after that."),
    click.option("--retries", type=int, default=3, show_default=True,
                 help="After failures that trying again can mend; preemptions do not count."),
    click.argument("options", nargs=-1, type=click.UNPROCESSED),
)  # fmt: skip


@click.group()
def job() -> None:
    """Train on Kubernetes: the same as `lithograph train`, as a Job.

    A configuration that cannot work is refused here, before anything is sent.
    """


@job.command(context_settings=_ANY)
@_job_options
@click.option("-n", "--namespace", help="Written into the objects.")
def render(namespace: str | None, **given: Any) -> None:
    """Print the ConfigMap and the Job, for `kubectl apply -f -`. Options of the file as key=value."""
    click.echo(_training_job(given).manifest(namespace=namespace), nl=False)


@job.command(context_settings=_ANY)
@_job_options
@_cluster_options
def submit(kubeconfig: str | None, context: str | None, namespace: str | None, **given: Any) -> None:
    """Send it to the cluster. Options of the file as key=value."""
    asked = _training_job(given)
    status = connect(kubeconfig=kubeconfig, context=context, namespace=namespace).submit(asked)
    click.echo(f"submitted: {status.name} in namespace {status.namespace}")
    click.echo(f"next: lithograph job logs --follow {status.name} --namespace {status.namespace}", err=True)


@job.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_cluster_options
def list_(as_json: bool, **where: Any) -> None:
    """List trainings, newest first."""
    found = connect(**where).list()
    if as_json:
        click.echo(json.dumps([_plain(status) for status in found], indent=1, ensure_ascii=False))
        return
    echo_table([_COLUMNS, *map(_row, found)])


@job.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_cluster_options
def status(name: str, as_json: bool, **where: Any) -> None:
    """Where it is, and what its exit code says."""
    found = _plain(connect(**where).status(name))
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for field, value in found.items():
        if value is not None:
            click.echo(f"{field.replace('_', ' '):12} {value}")


@job.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True,
              help="Until the Job is over, over all its pods; the exit code is then the training's.")  # fmt: skip
@click.option("--tail", type=click.IntRange(0), metavar="LINES", help="Only the last ones.")
@_cluster_options
def logs(name: str, follow: bool, tail: int | None, **where: Any) -> None:
    """What its newest pod says."""
    cluster: Cluster = connect(**where)
    for line in cluster.logs(name, follow=follow, tail=tail):
        click.echo(line)
    if not follow:
        return
    ended = cluster.status(name)
    click.echo(f"{ended.state}: {ended.meaning or ended.message}", err=True)
    sys.exit(ended.exit_code if ended.exit_code is not None else int(ended.state != "succeeded"))


@job.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
@_cluster_options
def cancel(name: str, now: bool, **where: Any) -> None:
    """Delete it: the pod saves a checkpoint. Submitting the same name again goes on from there."""
    connect(**where).cancel(name, at_once=now)
    click.echo(f"cancelled: {name}; what it wrote stays on the output volume")


def _training_job(given: dict[str, Any]) -> TrainingJob:
    path, options = given.pop("path"), given.pop("options")
    try:
        config, warnings = load_config(path, parse_assignments(options))
        for warning in warnings:
            click.echo(f"note: {warning}", err=True)
        return TrainingJob(config=config, **given)
    except LithographError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(_BAD_CONFIG)


def _plain(status: JobStatus) -> dict[str, Any]:
    fields = dataclasses.asdict(status)
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}


def _row(status: JobStatus) -> Sequence[str]:
    minutes = int((datetime.now(UTC) - status.created).total_seconds() // 60)
    age = f"{minutes}m" if minutes < 120 else f"{minutes // 60}h" if minutes < 2880 else f"{minutes // 1440}d"
    code = "" if status.exit_code is None else str(status.exit_code)
    return (status.name, status.state, code, str(status.failures), age, status.meaning or status.message or "")
