"""``/v1/adapters``: list the served adapters, and change them while serving."""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace as replace_fields
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from longcat.errors import DeadlineError
from longcat.logs import log_event
from service.access.caller import Caller, ForbiddenError, Role
from service.http.admission import Admission, AdmissionDependency
from service.http.edge.authentication import CallerDependency, UnauthorizedError, bearer_token, is_same
from service.http.error_responses import NotFoundError, Responses
from service.http.exchange.adapter_reports import merged, visible_to
from service.http.exchange.engine_link import EngineLink
from service.wire.errors import ErrorBody, NotReadyError, UnavailableError
from service.wire.events import ErrorEvent
from service.wire.messages import AdapterAction, AdapterCommand, AdapterReport, Reply

log = logging.getLogger("lithograph")

_READS = (AdapterAction.LIST, AdapterAction.FIND)
_ACTIONS = {a.value: a for a in (AdapterAction.LOAD, AdapterAction.PIN, AdapterAction.UNPIN, AdapterAction.UNLOAD)}


_LIST_SECONDS = 30.0
"""Time limit of a list, which needs no storage; other actions have the time limit of requests."""
_CHECK_SECONDS = 1.0

_BY_ONE = {AdapterAction.FIND: None, AdapterAction.IMPORT: AdapterAction.LOAD, AdapterAction.REMOVE: AdapterAction.POLL}
"""Actions in storage, which one engine carries out, and the action of the others afterwards."""


class AdapterCommands:
    """Sends commands about adapters to the engines, for one request."""

    def __init__(self, admission: Admission, request_id: str, caller: Caller) -> None:
        self._admission = admission
        self._request_id = request_id
        self._caller = caller

    async def report(self) -> AdapterReport:
        """Return the state of all adapters that the caller may use. Raises ``NotReadyError``."""
        return await self.send(AdapterAction.LIST)

    async def send(
        self, action: AdapterAction, name: str = "", *, path: str = "", replace: bool = False, field: str = "name"
    ) -> AdapterReport:
        """Have the engines carry out an action, and return the report on all of them; log it if it changes anything.

        ``field``: the name of the adapter's field in the request, for errors.
        Raises ``NotReadyError``, ``EngineStalledError``, ``DeadlineError``, ``ForbiddenError`` or the action's error.
        """
        if name:
            self._caller.check_adapter(name, field=field)
        exchange = self._admission.exchange
        if not (engines := [engine for engine in exchange.engines if engine.state.runs]):
            raise NotReadyError
        self._admission.check_engine()
        seconds = self._admission.config.timeout_seconds
        if action is AdapterAction.LIST:
            seconds = min(seconds, _LIST_SECONDS)
        command = AdapterCommand(
            id=str(uuid.uuid4()),
            action=action,
            deadline=time.monotonic() + seconds,
            name=name,
            path=path,
            replace=replace,
        )
        # First those that do not hang: one of them carries out what is done once.
        engines.sort(key=lambda engine: engine.stall() is not None)
        if action in _BY_ONE:
            replies = [await self._reply(engines[0], command)]
            if (following := _BY_ONE[action]) is not None and not isinstance(replies[0], ErrorEvent):
                replies += await self._replies(engines[1:], replace_fields(command, action=following))
        else:
            replies = await self._replies(engines, command)
        report = visible_to(self._caller, _report_of(replies, field))
        if action not in _READS:
            exchange.changes.record(action, name)
            log_event(
                log, "adapter_action",
                request_id=self._request_id, key=self._caller.name, action=action.value, adapter=name,
            )  # fmt: skip
        return report

    async def _replies(self, engines: Sequence[EngineLink], command: AdapterCommand) -> list[Reply]:
        """Return the reply of each engine, an error among them."""
        commands = [replace_fields(command, id=str(uuid.uuid4())) for _ in engines]
        return await asyncio.gather(*map(self._reply, engines, commands))

    async def _reply(self, engine: EngineLink, command: AdapterCommand) -> Reply:
        """Wait for a reply, unless the engine process hangs or the time limit of requests has passed."""
        asking = asyncio.ensure_future(self._admission.exchange.ask(engine, command))
        try:
            while True:
                done, _ = await asyncio.wait({asking}, timeout=0.0 if engine.stall() else _CHECK_SECONDS)
                if done:
                    return asking.result()
                if stall := engine.stall():
                    return ErrorEvent(stall)
                if time.monotonic() > command.deadline:
                    return ErrorEvent(DeadlineError())
        finally:
            asking.cancel()


def _report_of(replies: Sequence[Reply], field: str) -> AdapterReport:
    """Return the report of all engines that could reply. Raises the first error of another kind, or if none could."""
    errors = [reply.error for reply in replies if isinstance(reply, ErrorEvent)]
    reports = [reply for reply in replies if isinstance(reply, AdapterReport)]
    for error in errors:
        if not isinstance(error, UnavailableError) or not reports:
            raise error.renamed("adapter", field)
    return merged(reports)


def adapter_commands_of(request: Request, admission: AdmissionDependency, caller: CallerDependency) -> AdapterCommands:
    """Return the sender of a request's commands about adapters."""
    return AdapterCommands(admission, request.state.request_id, caller)


def check_admin_key(request: Request, admission: AdmissionDependency, caller: CallerDependency) -> None:
    """Raise an error unless the caller may change adapters: by its API key, or else by the admin key, if there is one."""
    if admission.config.access.api_keys_file is not None:
        caller.check(Role.ADAPTERS)
        return
    if (key := admission.config.access.admin_key) is None:
        return
    given = bearer_token(request.headers)
    if given is None or not is_same(given, key):
        raise UnauthorizedError(
            "admin_key_required",
            "changing adapters requires the admin key",
            remedy="send the header Authorization: Bearer KEY",
        )


def check_removal_allowed(admission: AdmissionDependency) -> None:
    """Raise ``ForbiddenError`` on a server without keys: any client could empty the storage."""
    if not admission.config.access.has_keys:
        raise ForbiddenError(
            "removal_requires_key",
            "nothing is removed over HTTP without an admin key",
            remedy="start the server with --admin-key-file or --api-keys-file, or use lithograph adapters",
        )


AdapterCommandsDependency = Annotated[AdapterCommands, Depends(adapter_commands_of)]
ADMIN_KEY = Depends(check_admin_key)

_ERRORS: Responses = {
    401: {"description": "The key is missing or wrong.", "model": ErrorBody},
    403: {"description": "The key does not allow it.", "model": ErrorBody},
    404: {
        "description": "No adapter has that name, no action has, or no adapter storage is configured.",
        "model": ErrorBody,
    },
    "default": {"description": "Any other error.", "model": ErrorBody},
}
router = APIRouter(tags=["adapters"], responses=_ERRORS)


@router.get("/v1/adapters", summary="Adapters, slots, storage")
async def list_adapters(commands: AdapterCommandsDependency) -> AdapterReport:
    """Desired and served versions, their state, and the slots in use."""
    return await commands.report()


@router.post("/v1/adapters/{name}/{action}", summary="Load, pin, unpin or unload", dependencies=[ADMIN_KEY])
async def change_adapter(name: str, action: str, commands: AdapterCommandsDependency) -> AdapterReport:
    """Load (again), pin to a slot, unpin, or stop serving, on this server alone."""
    if action not in _ACTIONS:
        raise NotFoundError(
            "unknown_action",
            "no such action",
            remedy="give one of {actions}",
            field="action",
            value=action,
            actions=", ".join(_ACTIONS),
        )
    return await commands.send(_ACTIONS[action], name)


@router.delete(
    "/v1/adapters/{name}", summary="Remove from storage", dependencies=[Depends(check_removal_allowed), ADMIN_KEY]
)
async def remove_adapter(name: str, commands: AdapterCommandsDependency) -> AdapterReport:
    """Remove all versions of an adapter from storage, and with it from all servers."""
    return await commands.send(AdapterAction.REMOVE, name)
