"""``lithograph job``: a training as a Kubernetes Job, rendered, submitted, followed and cancelled."""

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from lithograph.table import echo_table
from longcat.errors import JobError, LithographError
from studio.cluster import Cluster, JobStatus, connect
from studio.job_settings import JobSettings
from studio.training_job import TrainingJob
from trainer.config import TrainConfig
from trainer.config_file import known_keys, load_config, parse_assignments, problems_of

_Command = TypeVar("_Command", bound=Callable[..., Any])
_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}
_BAD_CONFIG = 78
_FLAGS = {"data_claim": "data", "adapters_claim": "adapters", "training_claim": "output", "models_claim": "models"}
_COLUMNS = ("NAME", "STATE", "EXIT", "FAILURES", "AGE", "MESSAGE")


def _option(field: str) -> Callable[[_Command], _Command]:
    """What a Job asks of the cluster, as an option: ``data_claim`` is ``--data CLAIM``."""
    described = JobSettings.model_fields[field]
    default = described.get_default(call_default_factory=True)
    return click.option(
        f"--{_FLAGS.get(field, field.replace('_', '-'))}", field, default=default,
        type=int if isinstance(default, int) else str, help=described.description,
        show_default=described.default is not None and described.default_factory is None,
        metavar="CLAIM" if field.endswith("_claim") else "NAME" if default is None else None,
    )  # fmt: skip


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
    *map(_option, JobSettings.model_fields),
    click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]..."),
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
    for line in cluster.logs(name, follow=follow, tail=tail, hear=_say_why_it_waits):
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
    path, options, name = given.pop("path"), given.pop("options"), given.pop("name")
    try:
        said = parse_assignments(options)
        _refuse_misspelt(said)
        config, warnings = load_config(path, said)
        for warning in warnings:
            click.echo(f"note: {warning}", err=True)
        return TrainingJob(name=name, config=config, settings=_settings(given))
    except LithographError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(_BAD_CONFIG)


def _refuse_misspelt(said: Iterable[str]) -> None:
    """A misspelt option of these commands would be taken for one of the file. Raises ``JobError``."""
    flags = [
        name for option in click.get_current_context().command.params for name in option.opts if name.startswith("--")
    ]
    known = known_keys(TrainConfig)
    for key in said:
        flag = f"--{key.replace('_', '-')}"
        near = difflib.get_close_matches(flag, [*flags, *(f"--{name}" for name in known)], n=1, cutoff=0.8)
        if key not in known and near and near[0] in flags:
            raise JobError(f"{flag}: unknown option; did you mean {near[0]}?")


def _settings(given: dict[str, Any]) -> JobSettings:
    try:
        return JobSettings(**given)
    except ValidationError as error:
        raise JobError("\n".join(said for _, said in problems_of(error))) from error


def _say_why_it_waits(status: JobStatus) -> None:
    click.echo(f"{status.state}: {status.message or 'no pod has started yet'}", err=True)


def _plain(status: JobStatus) -> dict[str, Any]:
    fields = dataclasses.asdict(status)
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}


def _row(status: JobStatus) -> Sequence[str]:
    minutes = int((datetime.now(UTC) - status.created).total_seconds() // 60)
    age = f"{minutes}m" if minutes < 120 else f"{minutes // 60}h" if minutes < 2880 else f"{minutes // 1440}d"
    code = "" if status.exit_code is None else str(status.exit_code)
    return (status.name, status.state, code, str(status.failures), age, status.meaning or status.message or "")
