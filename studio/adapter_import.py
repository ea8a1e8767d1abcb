"""Other programs' LoRA files into adapter storage: by ``lithograph adapters import``, in a process that may import torch."""

import asyncio
import json
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import UploadFile

from studio.config import StudioConfig
from studio.page_error import PageError, Problem

_CHUNK_BYTES = 2**20
_LARGEST_HEADER_BYTES = 100 * 10**6
"""As safetensors itself has it."""
_TIMEOUT_SECONDS = 600
_CONFIG_NAME = "adapter_config.json"
"""What the official trainer writes beside its weights."""
_WEIGHTS_NAME = "adapter_model.safetensors"
"""What it calls those; an upload is called so while it is looked at."""


class Importer:
    """Publishes uploads under a name."""

    def __init__(self, config: StudioConfig) -> None:
        self._config = config
        self._incoming = config.home / "incoming"

    async def publish(self, files: Sequence[UploadFile], name: str, triggers: Sequence[str], *, flavour: str) -> str:
        """Convert, verify and publish; what was published, in the program's words. Raises ``PageError`` with its reason."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._incoming) as scratch:
            source = await _save(files, Path(scratch))
            command = [
                sys.executable, "-m", "lithograph", "adapters", "import", str(source), "--name", name, "--flavour", flavour,
                "--storage", self._config.adapters_uri,
            ]  # fmt: skip
            if self._config.adapters_endpoint_url is not None:
                command += ["--endpoint-url", self._config.adapters_endpoint_url]
            command += [part for word in triggers for part in ("--trigger", word)]
            code, output = await _run(command)
        last = output.strip().rpartition("\n")[2]
        if code != 0:
            uploaded = next(Path(file.filename or "").name for file in files if not _is_config(file))
            reason = last.removeprefix("error: ").replace(str(Path(scratch) / _WEIGHTS_NAME), uploaded)
            reason = reason.replace(scratch, uploaded).replace(_WEIGHTS_NAME, uploaded)
            raise PageError("error.import_refused", detail=reason)
        return last


def _is_config(file: UploadFile) -> bool:
    return Path(file.filename or "").name == _CONFIG_NAME


async def _save(files: Sequence[UploadFile], folder: Path) -> Path:
    """Write the uploads; the file, or the directory if a configuration came with it."""
    weights = [file for file in files if (file.filename or "").endswith(".safetensors")]
    configs = [file for file in files if _is_config(file)]
    if len(weights) != 1 or len(files) != len(weights) + len(configs) or len(configs) > 1:
        names = ", ".join(Path(file.filename or "?").name for file in files) or "–"
        problem = Problem(field="file", key="error.not_safetensors", values={"value": names})
        raise PageError("error.form", problems=(problem,))
    path = folder / _WEIGHTS_NAME
    await _copy(weights[0], path)
    await asyncio.to_thread(_check_header, path)
    for config in configs:
        await _copy(config, folder / _CONFIG_NAME)
    return folder if configs else path


async def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("xb") as stream:
        while chunk := await upload.read(_CHUNK_BYTES):
            await asyncio.to_thread(stream.write, chunk)


def _check_header(path: Path) -> None:
    """Refuse what is no safetensors file before a process is started for it. Raises ``PageError``."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            is_good = length <= _LARGEST_HEADER_BYTES and isinstance(json.loads(stream.read(length)), dict)
    except (struct.error, ValueError):
        is_good = False
    if not is_good:
        problem = Problem(field="file", key="error.broken_safetensors")
        raise PageError("error.form", problems=(problem,))


async def _run(command: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of a program."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT_SECONDS)
    except BaseException as error:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(error, TimeoutError):
            raise PageError("error.import_slow", status=504, seconds=_TIMEOUT_SECONDS) from error
        raise
    assert process.returncode is not None
    return process.returncode, output.decode(errors="replace")
