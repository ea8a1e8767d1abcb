"""``lithograph usage``: what each API key of a running service has used."""

from datetime import datetime
from typing import Annotated, Any

import click
from pydantic import Field

from lithograph.client.client import Client
from lithograph.terminal import echo_table
from longcat.options import Configuration, Flag, command_options, configure
from service.wire.messages import DeviceUsage

_COLUMNS = ("DAY", "KEY", "MODEL", "REQUESTS", "PICTURES", "PIXEL-STEPS", "DEVICE-SECONDS")


class UsageOptions(Configuration):
    """The service to ask."""

    server: Annotated[str, Flag(metavar="URL")] = "http://127.0.0.1:8000"
    """Address of the service."""
    api_key: Annotated[str | None, Field(repr=False), Flag(is_secret=True)] = None
    """API key of that service. With the role admin, it shows the use by all keys."""


@click.command()
@command_options(UsageOptions)
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day in UTC; by default this month's.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last day in UTC; by default today.")
@click.option("--key", help="One key alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def usage(since: datetime | None, until: datetime | None, key: str | None, *, as_json: bool, **options: Any) -> None:
    """Show pictures, pixel-steps and seconds of device by key, day and model."""
    config = configure(UsageOptions, options)
    with Client(config.server, api_key=config.api_key) as client:
        report = client.usage(
            since=None if since is None else since.date(), until=None if until is None else until.date(), key=key
        )
    if as_json:
        click.echo(report.model_dump_json(indent=1))
        return
    rows = [(row.day.isoformat(), row.key or "", row.model, *_numbers(row)) for row in report.usage]
    echo_table([_COLUMNS, *rows, ("total", "", "", *_numbers(report.total))])


def _numbers(used: DeviceUsage) -> tuple[str, ...]:
    return str(used.requests), str(used.pictures), str(used.pixel_steps), f"{used.device_seconds:.1f}"
