"""A real S3 server behind a proxy that can cut, silence or forbid its connections."""

import asyncio
import contextlib
import subprocess
import sysconfig
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from loadtest.chaos.server import ChaosError, with_environment
from loadtest.servers import free_port

BUCKET = "adapters"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "chaos",
    "AWS_SECRET_ACCESS_KEY": "secret-of-chaos",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_START_SECONDS = 60.0
_CHUNK_BYTES = 1 << 16
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"

Way = Literal["open", "cut", "silent", "forbidden"]
"""``cut``: connections are closed at once; ``silent``: nothing is answered; ``forbidden``: every request gets 403."""


class Proxy:
    """A TCP proxy to the S3 server."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._way: Way = "open"
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    def set(self, way: Way) -> None:
        """Change the behaviour for all connections; open ones are closed."""
        self._way = way
        for writer in self._writers:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            self.set("cut")
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            match self._way:
                case "open":
                    await self._tunnel(reader, writer)
                case "silent":
                    await reader.read()
                case "forbidden":
                    await reader.readuntil(b"\r\n\r\n")
                    head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(_DENIED)}\r\nConnection: close\r\n\r\n"
                    writer.write(head.encode() + _DENIED)
                    await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of the two has closed the connection
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers.add(to_writer)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while chunk := await source.read(_CHUNK_BYTES):
                    target.write(chunk)
                    await target.drain()
            target.close()

        try:
            await asyncio.gather(copy(reader, to_writer), copy(to_reader, writer))
        finally:
            self._writers.discard(to_writer)


@asynccontextmanager
async def s3_server(folder: Path) -> AsyncIterator[Proxy]:
    """Run SeaweedFS with one bucket, behind a proxy. Raises ``ChaosError`` if it does not start."""
    port, *others = (free_port() for _ in range(4))
    ports = dict(zip(("master", "volume", "filer"), others, strict=True))
    command = [
        str(Path(sysconfig.get_path("scripts"), "weed")), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false", f"-s3.port={port}", "-s3.port.iceberg=0",
        "-s3.port.lance=0", *(f"-{name}.port={number}" for name, number in ports.items()),
        *(f"-{name}.port.grpc={free_port()}" for name in ports),
    ]  # fmt: skip
    command = with_environment(CREDENTIALS | {"S3_BUCKET": BUCKET}, command)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    proxy = Proxy(port)
    try:
        await asyncio.to_thread(_wait, f"http://127.0.0.1:{port}", folder / "log")
        async with proxy.running():
            yield proxy
    finally:
        process.kill()  # SIGTERM can hang
        process.wait()


def _wait(endpoint: str, log: Path) -> None:
    keys = {"aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"], "region_name": CREDENTIALS["AWS_DEFAULT_REGION"],
            "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}  # fmt: skip
    client = boto3.client("s3", endpoint_url=endpoint, **keys)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            client.head_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise ChaosError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}") from error
            time.sleep(0.2)
        else:
            return
