"""``/v1/adapters``: what is served, and changing it while serving."""

import hmac
import uuid

from fastapi import FastAPI, Request
from fastapi.responses import Response

from service.admission import Admission
from service.messages import AdapterAction, AdapterCommand, AdapterReport, Failed, RefusedError
from service.replies import NOT_READY, Responses
from service.schema import ErrorBody

_ACTIONS = {a.value: a for a in (AdapterAction.LOAD, AdapterAction.PIN, AdapterAction.UNPIN, AdapterAction.UNLOAD)}


class AdapterRoutes:
    """The endpoints."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def add_to(self, app: FastAPI) -> None:
        """Register them."""
        errors: Responses = {401: {"model": ErrorBody}, 404: {"model": ErrorBody}}
        for method, path, endpoint, summary in (
            ("GET", "/v1/adapters", self._list, "Adapters, slots, storage"),
            ("POST", "/v1/adapters/{name}/{action}", self._change, "load, pin, unpin or unload"),
            ("DELETE", "/v1/adapters/{name}", self._remove, "Remove from storage"),
        ):
            app.add_api_route(
                path, endpoint, methods=[method], name=f"{endpoint.__name__.strip('_')}_adapters", summary=summary,
                tags=["adapters"], response_model=AdapterReport, responses=errors,
            )  # fmt: skip

    async def report(self) -> AdapterReport:
        """What is served. Raises ``RefusedError``."""
        return await self.order(AdapterAction.LIST)

    async def order(
        self, action: AdapterAction, name: str = "", *, path: str = "", replace: bool = False
    ) -> AdapterReport:
        """Have something done about an adapter. Raises ``RefusedError``."""
        if self._admission.state["phase"] not in ("ready", "leaving", "draining", "waiting for adapters"):
            raise RefusedError(NOT_READY)
        command = AdapterCommand(id=str(uuid.uuid4()), action=action, name=name, path=path, replace=replace)
        reply = await self._admission.exchange.ask(command)
        if isinstance(reply, Failed):
            raise RefusedError(reply)
        assert isinstance(reply, AdapterReport)
        return reply

    def check_key(self, request: Request) -> None:
        """Raise ``RefusedError`` unless the request carries the admin key, if there is one."""
        if (key := self._admission.config.admin_key) is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {key}".encode()):
            message = "changing adapters takes the admin key: Authorization: Bearer KEY"
            raise RefusedError(Failed(status=401, code="unauthorized", message=message))

    async def _list(self) -> Response:
        """Desired and served versions, their state, and the slots that are taken."""
        return _reply(await self.report())

    async def _change(self, name: str, action: str, request: Request) -> Response:
        """Load (again), pin to a slot, unpin, or stop serving, on this server alone."""
        if action not in _ACTIONS:
            message = f"{action!r} is none of {', '.join(_ACTIONS)}"
            raise RefusedError(Failed(status=404, code="not_found", message=message))
        self.check_key(request)
        return _reply(await self.order(_ACTIONS[action], name))

    async def _remove(self, name: str, request: Request) -> Response:
        """Remove an adapter, all its versions, from storage: from all servers."""
        if self._admission.config.admin_key is None:
            message = (
                "nothing is removed over HTTP without an admin key; start with --admin-key, or use lithograph adapters"
            )
            raise RefusedError(Failed(status=403, code="forbidden", message=message))
        self.check_key(request)
        return _reply(await self.order(AdapterAction.REMOVE, name))


def _reply(report: AdapterReport) -> Response:
    return Response(report.model_dump_json(), media_type="application/json")
