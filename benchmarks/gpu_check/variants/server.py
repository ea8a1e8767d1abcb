"""``lithograph serve`` from files to SIGTERM: a picture, a stream, a job, an adapter published meanwhile."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np

from benchmarks.gpu_check.checks import Check, Failed
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.subjects.adapters import ATTENTION, random_adapter
from benchmarks.gpu_check.subjects.pictures import read_pixels
from lithograph.client.client import Client
from lithograph.client.errors import ServiceError
from loadtest.servers import ServerProcess, ServerSetup
from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.model.flavour import resolve
from longcat.storage.opening import open_storage
from service.wire.events import ResultEvent, StepEvent

_STEPS = 4
_ADAPTER = "gpu-check"
_PUBLISHED_SECONDS = 60.0


def run(kit: Kit) -> None:
    """Serve, use and end one server; a check each."""
    folder = kit.settings.folder / "server"
    folder.mkdir(exist_ok=True)
    storage = (folder / f"adapters-{time.time_ns()}").as_uri()
    begin = time.monotonic()
    server: list[ServerProcess] = []

    def start(check: Check) -> None:
        server.append(ServerProcess(serve_setup(kit, kit.model.written(), storage), folder / "serve.log"))
        server[0].wait_until_ready()
        check.note(ready_s=time.monotonic() - begin)

    kit.checks.run("from the command to readiness", start)
    if not server:
        return
    with _stopping(server[0]), Client(server[0].url) as client:
        kit.checks.run("a picture", partial(_picture, client))
        kit.checks.run("a stream", partial(_stream, client))
        kit.checks.run("a job", partial(_job, client))
        kit.checks.run("an adapter published while serving", partial(_adapter, kit, client, storage))
        kit.checks.run("SIGTERM during a request", partial(_stop, server[0], client))


def serve_setup(kit: Kit, model: str, storage: str) -> ServerSetup:
    """Set up ``lithograph serve`` on the device, with adapters in ``storage``."""
    options = ("--flavour", model, "--device", kit.settings.device, "--adapters", storage, "--adapter-rank", "16")
    return ServerSetup(
        name="lithograph",
        module="lithograph",
        options=("serve", *options, "--log-format", "text"),
        ready_path="/readyz",
    )


@contextmanager
def _stopping(server: ServerProcess) -> Iterator[None]:
    try:
        yield
    finally:
        server.stop()


def _draw(client: Client, *adapters: str) -> np.ndarray:
    return read_pixels(client.generate("a red apple", seed=1, steps=_STEPS, adapters=adapters).images[0].content)


def _picture(client: Client, check: Check) -> None:
    begin = time.monotonic()
    first = _draw(client)
    check.note(first_s=time.monotonic() - begin)
    begin = time.monotonic()
    second = _draw(client)
    check.note(second_s=time.monotonic() - begin, difference=float(np.abs(first - second).max()))
    check.require(bool((first == second).all()), "the same request has another picture")


def _stream(client: Client, check: Check) -> None:
    begin = time.monotonic()
    events = list(client.stream("a red apple", seed=1, steps=_STEPS, previews=True))
    steps = sum(isinstance(event, StepEvent) for event in events)
    check.note(s=time.monotonic() - begin, events=len(events))
    check.require(steps == _STEPS, f"{steps} of {_STEPS} steps were reported")
    check.require(isinstance(events[-1], ResultEvent), "the last event is not the result")


def _job(client: Client, check: Check) -> None:
    begin = time.monotonic()
    result = client.wait(client.submit("a red apple", seed=1, steps=_STEPS, num_images=2))
    check.note(s=time.monotonic() - begin)
    check.require(len(result.images) == 2, f"the job has {len(result.images)} pictures instead of 2")


def _adapter(kit: Kit, client: Client, storage: str, check: Check) -> None:
    weights = random_adapter(kit.model.transformer(), seed=3, rank=16, endings=ATTENTION)
    opened = open_storage(storage)
    draft = draft_of(weights, resolve(kit.model.written()), origin="trained")
    set_latest(opened, _ADAPTER, publish_lora(opened, _ADAPTER, draft, weights).version)
    begin = time.monotonic()
    adapted = _when_known(client)
    check.note(until_served_s=time.monotonic() - begin)
    check.require(bool((adapted != _draw(client)).any()), "the adapter changes nothing")


def _when_known(client: Client) -> np.ndarray:
    """Return the adapter's picture, as soon as the server knows the adapter."""
    deadline = time.monotonic() + _PUBLISHED_SECONDS
    while time.monotonic() < deadline:
        if any(_ADAPTER in str(adapter) for adapter in client.adapters().adapters):
            return _draw(client, _ADAPTER)
        time.sleep(0.2)
    raise Failed(f"the server does not know the adapter after {_PUBLISHED_SECONDS:.0f} s")


def _stop(server: ServerProcess, client: Client, check: Check) -> None:
    """Send SIGTERM while a request runs: it is finished, and the exit code is 0."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.generate, "一只猫", seed=2, steps=5 * _STEPS)
        time.sleep(0.5)
        begin = time.monotonic()
        code = server.stop()
        check.note(s=time.monotonic() - begin, exit_code=code)
        try:
            check.require(len(running.result().images) == 1, "the running request has no picture")
        except ServiceError as error:
            raise Failed(f"the running request failed: {error}") from error
    check.require(code == 0, f"the exit code is {code}")
