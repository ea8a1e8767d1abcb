"""vLLM's endpoints for adapters, ``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, with its fields and texts.

Adapters are in storage here, and are served from there without a request; so three things differ:

- ``lora_path`` is a location in adapter storage (its URI, its path, or ``name``, ``name@3``), which must be that of
  ``lora_name``; or a LoRA file or directory below a directory that the server was started with (``--import-from``), which is
  published to storage first. Nothing is downloaded from a hub.
- Loading an adapter that is served already succeeds: its storage is read again.
- The admin key allows it, not an environment variable; publishing always requires one.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, NoReturn

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from longcat.adapter.reference import Reference, parse_reference
from longcat.errors import AdapterError, NoAdapterStorageError, StorageError, UnknownAdapterError
from longcat.problem import show
from longcat.storage.address import FileAddress, parse_address
from service.access.caller import ForbiddenError
from service.config import AdapterConfig
from service.http.adapters import ADMIN_KEY, AdapterCommands, AdapterCommandsDependency
from service.http.admission import Admission, AdmissionDependency
from service.http.compat.errors import JSON_ERRORS, VllmInputError, VllmRoute
from service.http.requests.threads import run_in_thread
from service.wire.messages import AdapterAction, AdapterState

router = APIRouter(tags=["adapters"], route_class=VllmRoute, responses=JSON_ERRORS, dependencies=[ADMIN_KEY])


_NAME = "lora_name"
_LONGEST_PATH = 4096
"""Linux' own limit. Each directory of a path is looked up, so longer paths would take long to reject."""


class LoadAdapterRequest(BaseModel):
    """The body of ``/v1/load_lora_adapter``."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"lora_name": "ink", "lora_path": "ink"}]}
    )

    lora_name: str = ""
    lora_path: Annotated[str, Field(max_length=_LONGEST_PATH)] = ""
    load_inplace: bool = False


class UnloadAdapterRequest(BaseModel):
    """The body of ``/v1/unload_lora_adapter``; the number has no effect."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"lora_name": "ink"}]})

    lora_name: str = ""
    lora_int_id: int | None = None


@router.post("/v1/load_lora_adapter", summary="Load, as vLLM has it", response_class=PlainTextResponse)
async def load_lora_adapter(
    body: LoadAdapterRequest, admission: AdmissionDependency, commands: AdapterCommandsDependency
) -> str:
    """Look for an adapter in storage now, and serve it; a LoRA file elsewhere is published first."""
    name, path = body.lora_name, body.lora_path
    if not name or not path:
        raise VllmInputError("lora_fields_missing", "Both 'lora_name' and 'lora_path' must be provided.")
    config = admission.config.adapters
    if config is None:
        raise NoAdapterStorageError
    reference = parse_reference(name, field=_NAME)
    try:
        if (place := _place_in_storage(path, config)) is not None:
            _check_place(place, reference)
            await commands.send(AdapterAction.LOAD, name, replace=body.load_inplace, field=_NAME)
        else:
            file = await _file_to_import(body, reference, admission, config, commands)
            await commands.send(AdapterAction.IMPORT, name, path=str(file), replace=body.load_inplace, field=_NAME)
    except UnknownAdapterError as error:
        _raise_not_found(body, error)
    return f"Success: LoRA adapter '{name}' added successfully."


@router.post("/v1/unload_lora_adapter", summary="Unload, as vLLM has it", response_class=PlainTextResponse)
async def unload_lora_adapter(body: UnloadAdapterRequest, commands: AdapterCommandsDependency) -> str:
    """Stop serving an adapter on this server; it stays in storage."""
    name = body.lora_name
    if not name:
        raise VllmInputError("lora_name_missing", "'lora_name' needs to be provided to unload a LoRA adapter.")
    if not await _is_served(name, commands):
        if _names_version(name) and await _is_served(name.partition("@")[0], commands):
            raise VllmInputError(
                "lora_version_not_unloaded",
                "versions of an adapter are loaded and unloaded together",
                remedy="give the name alone: {name}",
                field=_NAME,
                value=name,
                name=name.partition("@")[0],
            )
        raise UnknownAdapterError("lora_not_served", "The lora adapter '{name}' cannot be found.", name=show(name))
    await commands.send(AdapterAction.UNLOAD, name, field=_NAME)
    return f"Success: LoRA adapter '{name}' removed successfully."


def _check_place(place: Reference, reference: Reference) -> None:
    """Raise ``VllmInputError`` unless a location in storage is that of the adapter's name."""
    if place in (reference, Reference(name=reference.name, version=None)):
        return
    adapter = place.name if place.version is None else f"{place.name}@{place.version}"
    raise VllmInputError(
        "lora_path_is_another_adapter",
        "lora_path is adapter '{adapter}'",
        remedy="give that as the lora_name",
        adapter=adapter,
    )


async def _file_to_import(
    body: LoadAdapterRequest,
    reference: Reference,
    admission: Admission,
    config: AdapterConfig,
    commands: AdapterCommands,
) -> Path:
    """Return the file or directory to publish. Raises ``UserError`` unless that is allowed."""
    name, path = body.lora_name, body.lora_path
    file = await run_in_thread(_importable, path, config)
    if file is None:
        raise VllmInputError(
            "lora_path_not_allowed",
            "is not below any of {places}",
            field="lora_path",
            value=path,
            places=", ".join([config.label or config.uri, *map(str, config.import_from)]),
        )
    if not await run_in_thread(os.path.exists, file):  # False for a name that no file can have
        _raise_not_found(body)
    if not admission.config.access.has_keys:
        raise ForbiddenError(
            "publishing_requires_key",
            "nothing is published over HTTP without an admin key",
            remedy="start the server with --admin-key-file or --api-keys-file",
        )
    if reference.version is not None:
        raise VllmInputError(
            "lora_name_with_version",
            "versions are numbered by storage",
            remedy="give the name alone",
            field=_NAME,
            value=name,
        )
    if not body.load_inplace and await _is_served(name, commands):
        raise VllmInputError(
            "lora_loaded_already",
            "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
            "'load_inplace' to True.",
            name=name,
        )
    return file


def _names_version(name: str) -> bool:
    try:
        return parse_reference(name).version is not None
    except AdapterError:
        return False


async def _is_served(name: str, commands: AdapterCommands) -> bool:
    states = {status.name: status.state for status in (await commands.report()).adapters}
    return states.get(name, AdapterState.UNLOADED) is not AdapterState.UNLOADED


def _raise_not_found(body: LoadAdapterRequest, cause: UnknownAdapterError | None = None) -> NoReturn:
    raise UnknownAdapterError(
        "lora_not_found",
        "Loading lora {name} failed: No adapter found for {path}",
        name=show(body.lora_name),
        path=show(body.lora_path),
    ) from cause


def _place_in_storage(path: str, config: AdapterConfig) -> Reference | None:
    """Return the adapter at a location in storage; None if the path is elsewhere."""
    bucket, place = _bucket_and_path(path)
    root_bucket, root = _bucket_and_path(config.uri)
    if place.is_absolute():
        if bucket != root_bucket or not place.is_relative_to(root):
            return None
        place = place.relative_to(root)
    name, *rest = place.parts or ("",)
    version = f"@{rest[0]}" if rest else ""
    try:
        if rest[1:] in ([], ["adapter.safetensors"]):
            return parse_reference(name + version)
    except AdapterError:
        pass
    return None


def _bucket_and_path(path: str) -> tuple[str, PurePosixPath]:
    """Return a URI's bucket and absolute path, and any other path as it is; only S3 has buckets."""
    if not path.startswith(("file:", "s3:")):
        return "", PurePosixPath(path)
    try:
        address = parse_address(path, field="lora_path")
    except StorageError as error:
        raise VllmInputError.of(error.problems) from error
    if isinstance(address, FileAddress):
        return "", PurePosixPath(address.folder)
    return address.bucket, PurePosixPath("/", address.prefix)


def _importable(path: str, config: AdapterConfig) -> Path | None:
    """Return the file of a path, links followed, if it is below a directory that may be imported from (path traversal).

    So must be whatever an import of it opens: the weights in a directory, and the configuration beside weights.
    """
    bucket, place = _bucket_and_path(path)
    if bucket or not place.is_absolute() or "\0" in path:
        return None
    file = Path(os.path.realpath(place))
    folder = file if os.path.isdir(file) else file.parent
    opened = [file, folder / "adapter_config.json", *(folder.glob("*.safetensors") if folder == file else ())]
    return file if all(_is_allowed(os.path.realpath(part), config) for part in opened) else None


def _is_allowed(real: str, config: AdapterConfig) -> bool:
    return any(Path(real).is_relative_to(os.path.realpath(folder)) for folder in config.import_from)
