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

from lithograph.kubernetes.connection import connect
from lithograph.kubernetes.job_settings import JobSettings
from lithograph.kubernetes.job_status import ClusterJob
from lithograph.kubernetes.training_job import TrainingJob
from lithograph.terminal import echo_table, fail
from longcat.errors import JobError, LithographError
from longcat.options import build, command_options
from longcat.problem import Problem
from longcat.validation import names_of, unknown_field
from trainer.config.options import TrainConfig
from trainer.config.reading.assignments import parse_assignments
from trainer.config.reading.file import load_config
from trainer.record.outcome import Outcome

_Command = TypeVar("_Command", bound=Callable[..., Any])
_ANY = {"ignore_unknown_options": True, "allow_extra_args": True}
_COLUMNS = ("NAME", "STATE", "EXIT", "FAILURES", "AGE", "MESSAGE")


def _all_of(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_cluster_options = _all_of(
    click.option("--kubeconfig", envvar="KUBECONFIG", show_envvar=True, metavar="PATH",
                 help="Kubeconfig; default: the pod's own account in a cluster, else ~/.kube/config."),
    click.option("--context", help="Context of the kubeconfig; default: its current one."),
    click.option("-n", "--namespace", help="Namespace; default: the context's, or the pod's."),
)  # fmt: skip

_job_options = _all_of(
    click.option("--config", "path", type=click.Path(dir_okay=False, path_type=Path), required=True,
                 help="Configuration of `lithograph train`, with the paths in the pod: /data, /adapters, /output, /models."),
    click.option("--name", required=True, help="Name of the Job; the same name again continues from its checkpoint."),
    command_options(JobSettings),
    click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]..."),
)  # fmt: skip


@click.group()
def job() -> None:
    """Train on Kubernetes: the same as `lithograph train`, as a Job.

    A configuration that cannot work is rejected before anything is sent.
    """


@job.command(context_settings=_ANY)
@_job_options
@click.option("-n", "--namespace", help="Namespace written into the objects.")
def render(namespace: str | None, **given: Any) -> None:
    """Print the ConfigMap and the Job, for `kubectl apply -f -`. Options of the file as key=value."""
    click.echo(_training_job(given).manifest(namespace=namespace), nl=False)


@job.command(context_settings=_ANY)
@_job_options
@_cluster_options
def submit(kubeconfig: str | None, context: str | None, namespace: str | None, **given: Any) -> None:
    """Submit the training. Options of the file can be given as key=value."""
    training = _training_job(given)
    status = connect(kubeconfig=kubeconfig, context=context, namespace=namespace).submit(training)
    click.echo(f"submitted: {status.name} in namespace {status.namespace}")
    click.echo(f"next: lithograph job logs --follow {status.name} --namespace {status.namespace}", err=True)


@job.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_cluster_options
def status(name: str, as_json: bool, **where: Any) -> None:
    """Show a training's state, and the meaning of its exit code."""
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
              help="Follow the logs of all its pods to the Job's end; exit with the training's exit code.")  # fmt: skip
@click.option("--tail", type=click.IntRange(0), metavar="LINES", help="Print only the last lines.")
@_cluster_options
def logs(name: str, follow: bool, tail: int | None, **where: Any) -> None:
    """Print the log of a training's newest pod."""
    cluster = connect(**where)
    for line in cluster.logs(name, follow=follow, tail=tail, on_wait=_echo_waiting):
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
    """Delete a training. Its pod saves a checkpoint, from which a new submission of the same name continues."""
    connect(**where).cancel(name, at_once=now)
    click.echo(f"cancelled: {name}; its files stay on the output volume")


def _training_job(given: dict[str, Any]) -> TrainingJob:
    """Return the Job that the options describe; an error ends the command as in ``lithograph train``."""
    path, options, name = given.pop("path"), given.pop("options"), given.pop("name")
    try:
        assignments = parse_assignments(options)
        _check_spelling(assignments)
        config, warnings = load_config(path, assignments)
        for warning in warnings:
            click.echo(f"note: {warning}", err=True)
        return TrainingJob(name=name, config=config, settings=build(JobSettings, given))
    except LithographError as error:
        fail(error, Outcome.BAD_CONFIG)


def _check_spelling(assignments: Iterable[str]) -> None:
    """Raise ``JobError`` for a misspelt option of these commands, which would be taken for an option of the file."""
    flags = [
        name for option in click.get_current_context().command.params for name in option.opts if name.startswith("--")
    ]
    known = names_of(TrainConfig)
    for key in assignments:
        flag = f"--{key.replace('_', '-')}"
        near = difflib.get_close_matches(flag, [*flags, *(f"--{name}" for name in known)], n=1, cutoff=0.8)
        if key not in known and near and near[0] in flags:
            raise JobError.of([unknown_field(flag, None, near)])


def _echo_waiting(status: ClusterJob) -> None:
    click.echo(f"{status.state}: {status.message or 'no pod has started yet'}", err=True)


def _plain(status: ClusterJob) -> dict[str, Any]:
    values = {field.name: getattr(status, field.name) for field in dataclasses.fields(status)}
    return {
        name: value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, Problem) else value
        for name, value in values.items()
    }


def _row(status: ClusterJob) -> Sequence[str]:
    minutes = int((datetime.now(UTC) - status.created).total_seconds() // 60)
    age = f"{minutes}m" if minutes < 120 else f"{minutes // 60}h" if minutes < 2880 else f"{minutes // 1440}d"
    code = "" if status.exit_code is None else str(status.exit_code)
    return (status.name, status.state, code, str(status.failures), age, str(status.meaning or status.message or ""))
