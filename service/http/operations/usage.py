"""``GET /v1/usage``: what each key has used."""

import functools
from datetime import UTC, date, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from longcat.errors import UserError
from service.access.caller import Role
from service.access.usage import read_usage
from service.http.admission import AdmissionDependency
from service.http.edge.authentication import CallerDependency
from service.http.error_responses import NotFoundError
from service.http.requests.threads import run_in_thread
from service.wire.errors import ErrorBody
from service.wire.messages import UsageReport

router = APIRouter()


@router.get(
    "/v1/usage",
    summary="Pictures, pixel-steps and seconds of device by key, day and model",
    tags=["operations"],
    responses={
        403: {"description": "The key may not see the use by another key.", "model": ErrorBody},
        404: {"description": "The server keeps no usage.", "model": ErrorBody},
        422: {"description": "A day is not a date.", "model": ErrorBody},
    },
)
async def usage(
    admission: AdmissionDependency,
    caller: CallerDependency,
    since: Annotated[str | None, Query(description="First day in UTC, as 2026-11-28; by default this month's.")] = None,
    until: Annotated[str | None, Query(description="Last day in UTC; by default today.")] = None,
    key: Annotated[str | None, Query(description="One key alone; other keys than its own need the role admin.")] = None,
) -> UsageReport:
    """A key sees its own use, and one with the role admin that of all."""
    folder = admission.config.access.state_dir
    if folder is None:
        raise NotFoundError(
            "usage_not_kept", "this server keeps no usage", remedy="start it with --state-dir DIRECTORY"
        )
    if not caller.has(Role.ADMIN):
        if key not in (None, caller.name):
            caller.check(Role.ADMIN)
        key = caller.name
    today = datetime.now(UTC).date()
    days = {"since": _day("since", since, today.replace(day=1)), "until": _day("until", until, today)}
    return await run_in_thread(functools.partial(read_usage, folder, key=key, **days))


def _day(field: str, given: str | None, default: date) -> date:
    """Return a day in ISO 8601. Raises ``UserError``."""
    try:
        return default if given is None else date.fromisoformat(given)
    except ValueError:
        raise UserError(
            "not_a_day", "not a day", remedy="give YYYY-MM-DD, as in {example}", field=field, value=given,
            example=default.isoformat(),
        ) from None  # fmt: skip
