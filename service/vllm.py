"""vLLM's endpoints for adapters, ``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``: its fields and texts.

What differs, because adapters live in storage here and are served from there without being asked:

- ``lora_path`` is a place in adapter storage (its URI, its path, or ``name``, ``name@3``), which has to be that of
  ``lora_name``; or a LoRA file or directory below a directory that the server was started with (``--import-from``), which is
  published to storage first. Nothing is downloaded from a hub.
- Loading what is served already is a success: it means to look at it anew.
- The right to do it is the admin key, not an environment variable; publishing takes one in any case.
"""

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict

from longcat.adapter import Reference, parse_reference
from longcat.errors import AdapterError, LithographError
from service.adapters import AdapterRoutes
from service.admission import Admission
from service.config import AdapterConfig
from service.messages import AdapterAction, AdapterState, RefusedError
from service.openai_schema import OpenAIError, OpenAIErrorBody
from service.refusals import parse
from service.replies import Responses, failure_of

_USER, _BAD, _NOT_FOUND, _SERVER = "InvalidUserInput", "BadRequestError", "NotFoundError", "InternalServerError"


class LoadRequest(BaseModel):
    """The body of ``/v1/load_lora_adapter``."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"lora_name": "ink", "lora_path": "ink"}]}
    )

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False


class UnloadRequest(BaseModel):
    """The body of ``/v1/unload_lora_adapter``; the number is not looked at."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"lora_name": "ink"}]})

    lora_name: str = ""
    lora_int_id: int | None = None


class _VllmError(LithographError):
    """What vLLM would answer with."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class VllmRoutes:
    """The endpoints."""

    def __init__(self, admission: Admission, adapters: AdapterRoutes) -> None:
        self._admission = admission
        self._adapters = adapters

    def add_to(self, app: FastAPI) -> None:
        """Register them."""
        errors: Responses = {status: {"model": OpenAIErrorBody} for status in (400, 401, 403, 404, 503)}
        for name, endpoint, model in (("load", self._load, LoadRequest), ("unload", self._unload, UnloadRequest)):
            body = {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}
            app.add_api_route(
                f"/v1/{name}_lora_adapter", endpoint, methods=["POST"], name=f"{name}_lora_adapter", tags=["adapters"],
                summary=f"{name.capitalize()}, as vLLM has it", response_class=PlainTextResponse, responses=errors,
                openapi_extra={"requestBody": body},
            )  # fmt: skip

    async def _load(self, request: Request) -> Response:
        """Look for an adapter now, and serve it; a LoRA file elsewhere is published first."""
        try:
            self._adapters.check_key(request)
            wanted = parse(LoadRequest, await self._admission.read_body(request))
            await self._serve(wanted)
        except Exception as error:
            return _reply_to_error(error)
        return PlainTextResponse(f"Success: LoRA adapter '{wanted.lora_name}' added successfully.")

    async def _serve(self, wanted: LoadRequest) -> None:
        name, path = wanted.lora_name, wanted.lora_path
        if not name or not path:
            raise _VllmError(400, _USER, "Both 'lora_name' and 'lora_path' must be provided.")
        config = self._admission.config.adapters
        if config is None:
            raise _VllmError(400, _BAD, "no adapter storage is configured here; start with --adapters")
        reference = parse_reference(name)
        if (place := _place_in_storage(path, config)) is not None:
            if place not in (reference, Reference(name=reference.name, version=None)):
                meant = place.name if place.version is None else f"{place.name}@{place.version}"
                raise _VllmError(400, _USER, f"lora_path is adapter {meant!r}: give that as the lora_name")
            await self._order(AdapterAction.LOAD, wanted)
            return
        file = _importable(path, config)
        if file is None:
            where = ", ".join([config.uri, *map(str, config.import_from)])
            raise _VllmError(400, _USER, f"lora_path {path!r} is not below any of {where}")
        if not file.exists():
            raise _not_found(wanted)
        if self._admission.config.admin_key is None:
            raise _VllmError(403, _USER, "publishing over HTTP takes an admin key; start with --admin-key")
        if reference.version is not None:
            raise _VllmError(400, _USER, f"lora_name {name!r}: versions are numbered by storage; give the name alone")
        if not wanted.load_inplace and await self._is_served(name):
            raise _VllmError(
                400, _USER, f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                "set 'load_inplace' to True.",
            )  # fmt: skip
        await self._order(AdapterAction.IMPORT, wanted, file)

    async def _order(self, action: AdapterAction, wanted: LoadRequest, file: Path | None = None) -> None:
        path = "" if file is None else str(file)
        try:
            await self._adapters.order(action, wanted.lora_name, path=path, replace=wanted.load_inplace)
        except RefusedError as error:
            if error.failed.status == 404:
                raise _not_found(wanted) from error
            raise

    async def _unload(self, request: Request) -> Response:
        """Serve it no longer, on this server; it stays in storage."""
        try:
            self._adapters.check_key(request)
            name = parse(UnloadRequest, await self._admission.read_body(request)).lora_name
            if not name:
                raise _VllmError(400, _USER, "'lora_name' needs to be provided to unload a LoRA adapter.")
            if not await self._is_served(name):
                raise _VllmError(404, _NOT_FOUND, f"The lora adapter '{name}' cannot be found.")
            await self._adapters.order(AdapterAction.UNLOAD, name)
        except Exception as error:
            return _reply_to_error(error)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _is_served(self, name: str) -> bool:
        states = {status.name: status.state for status in (await self._adapters.report()).adapters}
        return states.get(name, AdapterState.UNLOADED) is not AdapterState.UNLOADED


def _place_in_storage(path: str, config: AdapterConfig) -> Reference | None:
    """The adapter whose place in storage a path is, if it is one."""
    uri = config.uri.rstrip("/") + "/"
    root = unquote(urlsplit(uri).path) if uri.startswith("file:") else None
    if path.startswith(uri):
        key = path.removeprefix(uri)
    elif root is not None and path.startswith(root):
        key = path.removeprefix(root)
    elif path.startswith("/") or "://" in path:
        return None
    else:
        key = path
    name, *rest = PurePosixPath(key).parts or ("",)
    version = f"@{rest[0]}" if rest else ""
    try:
        if rest[1:] in ([], ["adapter.safetensors"]):
            return parse_reference(name + version)
    except AdapterError:
        pass
    return None


def _importable(path: str, config: AdapterConfig) -> Path | None:
    """The file or directory of a path, if it is below a directory that may be imported from, links followed."""
    file = Path(unquote(path.removeprefix("file://")) if path.startswith("file://") else path)
    if not file.is_absolute():
        return None
    file = file.resolve()
    return file if any(file.is_relative_to(folder.resolve()) for folder in config.import_from) else None


def _not_found(wanted: LoadRequest) -> _VllmError:
    message = f"Loading lora {wanted.lora_name} failed: No adapter found for {wanted.lora_path}"
    return _VllmError(404, _NOT_FOUND, message)


def _reply_to_error(error: Exception) -> Response:
    """An error in vLLM's shape: OpenAI's, with its own names, and the status as the code."""
    if isinstance(error, _VllmError):
        status, kind, message, seconds = error.status, error.kind, str(error), None
    else:
        failed = failure_of(error)
        status = 400 if failed.status == 422 else failed.status
        kind = {401: "AuthenticationError", 404: _NOT_FOUND}.get(status, _BAD if status < 500 else _SERVER)
        message, seconds = failed.message, failed.retry_after_seconds
    body = OpenAIErrorBody(error=OpenAIError(message=message, type=kind, code=status))
    headers = None if seconds is None else {"Retry-After": str(seconds)}
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)
