"""Import of LoRA files uploaded in a browser, by ``lithograph adapters import`` in a process that imports torch."""

import asyncio
import dataclasses
import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile

from longcat.errors import StorageError
from longcat.problem import Problem
from longcat.process.parent import PARENT_OPTION
from longcat.storage.disk import writing
from studio.config import StudioConfig
from studio.web.errors import FormError, ImportRefusedError, ImportTimeoutError

_CHUNK_BYTES = 2**20
_LARGEST_HEADER_BYTES = 100 * 10**6
"""The limit of safetensors itself."""
_TIMEOUT_SECONDS = 600
_CONFIG_NAME = "adapter_config.json"
"""The file that the official trainer writes beside its weights."""
_WEIGHTS_NAME = "adapter_model.safetensors"
"""The official trainer's name of the weights; an upload has it during the import."""
_STORAGE_ERRORS: Mapping[str, type[StorageError]] = {
    StorageError.code: StorageError,
    **{kind.code: kind for kind in StorageError.__subclasses__()},
}
"""Codes of import errors that are about storage, not about the file."""


class Importer:
    """Publishes uploads under a name."""

    def __init__(self, config: StudioConfig) -> None:
        self._config = config
        self._incoming = config.home / "incoming"

    async def publish(
        self, files: Sequence[UploadFile], name: str, triggers: Sequence[str], *, flavour: str
    ) -> Mapping[str, Any]:
        """Convert, verify and publish an upload; return the summary that ``lithograph adapters import --json`` prints.

        Raises ``ImportRefusedError`` with the file's problems, ``StorageError`` or ``ImportTimeoutError``.
        """
        self._incoming.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._incoming) as scratch:
            source = await _save(files, Path(scratch))
            command = [
                sys.executable, "-P", "-m", "lithograph", PARENT_OPTION, str(os.getpid()),
                "adapters", "import", str(source), "--json", "--name", name,
                "--flavour", flavour, "--storage", self._config.adapters_uri,
            ]  # fmt: skip
            if self._config.adapters_endpoint_url is not None:
                command += ["--endpoint-url", self._config.adapters_endpoint_url]
            command += [part for word in triggers for part in ("--trigger", word)]
            exit_code, output, log = await _run(command)
        uploaded = next(Path(file.filename or "").name for file in files if not _is_config(file))

        def rename(text: str) -> str:
            path = str(Path(scratch) / _WEIGHTS_NAME)
            return text.replace(path, uploaded).replace(scratch, uploaded).replace(_WEIGHTS_NAME, uploaded)

        try:
            reply: dict[str, Any] = json.loads(output)
        except ValueError as error:  # it was killed, or failed unexpectedly
            reason = rename(log.strip().rpartition("\n")[2])
            raise ImportRefusedError(
                "import_failed", "the import ended with exit code {exit_code}: {reason}",
                remedy="check the memory and the disk of this machine", exit_code=exit_code, reason=reason,
            ) from error  # fmt: skip
        if "error" in reply:
            kind = _STORAGE_ERRORS.get(reply["error"]["code"], ImportRefusedError)
            raise kind.of(_renamed(Problem.from_json(problem), rename) for problem in reply["error"]["problems"])
        return reply | {"warnings": [Problem.from_json(warning) for warning in reply.get("warnings", ())]}


def _renamed(problem: Problem, rename: Callable[[str], str]) -> Problem:
    """Return the problem with the uploaded files' own names in place of paths."""

    def value(given: object) -> object:
        if isinstance(given, Problem):
            return _renamed(given, rename)
        return rename(given) if isinstance(given, str) else given

    details = {name: value(detail) for name, detail in problem.details.items()}
    return dataclasses.replace(problem, value=value(problem.value), details=details)


def _is_config(file: UploadFile) -> bool:
    return Path(file.filename or "").name == _CONFIG_NAME


async def _save(files: Sequence[UploadFile], folder: Path) -> Path:
    """Write the uploads; return the file, or the directory if a configuration came with it."""
    weights = [file for file in files if (file.filename or "").endswith(".safetensors")]
    configs = [file for file in files if _is_config(file)]
    if len(weights) != 1 or len(files) != len(weights) + len(configs) or len(configs) > 1:
        names = ", ".join(Path(file.filename or "?").name for file in files) or "–"
        raise FormError(
            "not_one_safetensors_file", "not one .safetensors file",
            remedy="give one, with its adapter_config.json if it has one", field="file", value=names,
        )  # fmt: skip
    path = folder / _WEIGHTS_NAME
    await _copy(weights[0], path)
    await asyncio.to_thread(_check_header, path)
    for config in configs:
        await _copy(config, folder / _CONFIG_NAME)
    return folder if configs else path


async def _copy(upload: UploadFile, path: Path) -> None:
    with writing(path), path.open("xb") as stream:
        while chunk := await upload.read(_CHUNK_BYTES):
            await asyncio.to_thread(stream.write, chunk)


def _check_header(path: Path) -> None:
    """Raise ``FormError`` if a file is no safetensors file, before a process is started for it."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            is_good = length <= _LARGEST_HEADER_BYTES and isinstance(json.loads(stream.read(length)), dict)
    except (struct.error, ValueError, RecursionError):
        is_good = False
    if not is_good:
        raise FormError(
            "safetensors_header_broken", "no safetensors file, or only a part of one",
            remedy="give the whole file", field="file",
        )  # fmt: skip


async def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """Return the exit code, standard output and standard error of a program."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, log = await asyncio.wait_for(process.communicate(), _TIMEOUT_SECONDS)
    except TimeoutError as error:
        raise ImportTimeoutError(
            "import_timeout", "the import took more than {seconds} s and was stopped", seconds=_TIMEOUT_SECONDS
        ) from error
    finally:  # also if the request is cancelled: the program must not outlive it
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace"), log.decode(errors="replace")
