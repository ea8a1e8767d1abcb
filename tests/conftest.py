"""Fixtures: the embedded model, loaded once; a server on a free port; storage in a directory and on a real S3 server."""

import os

# OpenMP reads these when torch is first imported. Threads that spin while they wait starve each other on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import httpx
import hypothesis
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from longcat.logs import silence_import_noise
from longcat.model.flavour import Flavour, resolve
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from tests.fast import is_fast
from tests.warm import WarmPopen, lithograph, run_module

if TYPE_CHECKING:
    from longcat.model.loading import Components

silence_import_noise()
# No deadline, because other load makes examples slow. The same examples every time, so that a failure can be reproduced.
hypothesis.settings.register_profile("lithograph", deadline=None, derandomize=True)
hypothesis.settings.load_profile("lithograph")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start no other program, and put the files with the most others first.

    The fast files then fill the end of a run by several processes, which a long file would leave to one of them.
    """
    others: Counter[Path] = Counter()
    for item in items:
        if is_fast(item):
            item.add_marker("fast")
        else:
            others[item.path] += 1
    items.sort(key=lambda item: -others[item.path])


START_SECONDS = 240
BUCKET = "adapters"


_PORTS = range(11_000, 20_000)
"""Ports below those of outgoing connections, even with the 10000 that SeaweedFS adds for gRPC."""
_handed_out: set[int] = set()


def free_port() -> int:
    """Return a port that no process listens on and that this process has not given to another test."""
    for port in random.SystemRandom().sample(_PORTS, 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _handed_out:
                _handed_out.add(port)
                return port
    raise AssertionError(f"no free port in {_PORTS}")


@pytest.fixture(scope="session")
def flavour() -> Flavour:
    return resolve("embedded")


@pytest.fixture(scope="session")
def model(flavour: Flavour) -> "Components":
    from longcat.model.loading import load  # not above: a process that hands tests to others needs no torch

    return load(flavour, device="cpu")


@pytest.fixture(scope="session")
def edit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that edits, in the layout of LongCat-Image-Edit."""
    from tests.edit_model import write_edit_model  # with torch

    return write_edit_model(tmp_path_factory.mktemp("editing") / "tiny-edit")


@pytest.fixture(scope="session")
def edit_model(edit_folder: Path) -> "Components":
    from longcat.model.loading import load

    return load(resolve(str(edit_folder)), device="cpu")


def run_lithograph(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the ``lithograph`` command, with more environment variables."""
    return run_module("lithograph", *arguments, cwd=cwd, environment=variables)


def run_cold(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the ``lithograph`` command as a shell starts it, which takes up to ten seconds longer."""
    return subprocess.run(
        lithograph(*arguments),
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


class RunningServer:
    """A ``lithograph serve`` process, its address and its log."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self._log = log

    def log_text(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def stop(self) -> int:
        """Send SIGTERM to the main process and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


@contextmanager
def serve(folder: Path, *arguments: str, wait: bool = True, cold: bool = False) -> Iterator[RunningServer]:
    """Run a server for the duration of the context. ``cold``: as a shell starts it, which takes ten seconds longer."""
    port = free_port()
    log = folder / f"serve-{port}.log"
    start = subprocess.Popen if cold else WarmPopen
    with log.open("wb") as stream:
        process = start(
            lithograph("serve", "--port", str(port), *arguments), stdout=stream, stderr=stream, start_new_session=True
        )
    server = RunningServer(process, f"http://127.0.0.1:{port}", log)
    try:
        if wait:
            wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            server.stop()


def wait_until_ready(server: RunningServer) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the server is not ready; its log:\n{server.log_text()}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def ended_server(request: pytest.FixtureRequest) -> Iterator[None]:
    """Show the log of the shared server after the test that ended it."""
    yield
    if "server" in request.fixturenames and (server := request.getfixturevalue("server")).process.poll() is not None:
        pytest.fail(f"the server ended with {server.process.returncode}; its log:\n{server.log_text()[-8000:]}")


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as session:
        yield session


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("seaweed")
    port, *others = (free_port() for _ in range(4))
    credentials = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret-of-tester"}
    ports = dict(zip(("master", "volume", "filer"), others, strict=True))
    command = [
        Path(sysconfig.get_path("scripts"), "weed"), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", "-admin.ui=false",
        "-webdav=false", f"-s3.port={port}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}.port={number}" for name, number in ports.items()),
    ]  # fmt: skip
    environment = os.environ | credentials | {"S3_BUCKET": BUCKET}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    endpoint = f"http://127.0.0.1:{port}"
    patch = pytest.MonkeyPatch()
    for name, value in (credentials | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        patch.setenv(name, value)
    try:
        client = boto3.client("s3", endpoint_url=endpoint)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                client.head_bucket(Bucket=BUCKET)
                break
            except (BotoCoreError, ClientError):
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield endpoint
    finally:
        patch.undo()
        process.send_signal(signal.SIGKILL)  # SIGTERM can hang
        process.wait()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Mount a file system of 8 MiB that a test can fill; its path is short enough for a server's sockets."""
    folder = Path(tempfile.mkdtemp())
    mounting = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(folder)]
    done = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if done.returncode:
        assert os.geteuid(), done.stderr
        pytest.skip(f"mounting a tmpfs needs root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path) -> Path:
    """Fill the free space of a disk; return the file."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as stream, suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while stream.write(bytes(size)) == size:
                    pass
    return filler


@pytest.fixture(params=["file", "s3"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    """Return a function that opens the same empty storage at each call, as several machines would."""
    if request.param == "file":
        return lambda: open_storage((tmp_path / "root").as_uri())
    endpoint = request.getfixturevalue("s3_endpoint")
    return lambda: open_storage(f"s3://{BUCKET}/{tmp_path.name}", endpoint_url=endpoint)


@pytest.fixture
def storage(opener: Callable[[], Storage]) -> Storage:
    return opener()
