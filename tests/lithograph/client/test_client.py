"""``lithograph.Client`` and ``lithograph generate --server`` against a real server; the examples run."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

import lithograph
from service.wire.events import PreviewEvent, ResultEvent, StepEvent
from service.wire.job import JobStatus
from tests import ROOT
from tests.conftest import RunningServer, free_port, run_lithograph
from tests.service.http.replies import metric
from tests.service.test_serving import assert_stopped_early, steps_made

EXAMPLES = ROOT / "examples" / "clients"


@pytest.fixture(scope="module")
def ours(server: RunningServer) -> Iterator[lithograph.Client]:
    with lithograph.Client(server.url, timeout_seconds=60) as session:
        yield session


@pytest.fixture
def apple(client: httpx.Client) -> bytes:
    return client.post("/generate", json={"prompt": "a red apple", "seed": 1, "steps": 3}).content


def test_importing_lithograph_imports_nothing_of_it() -> None:
    code = "import lithograph, sys; sys.exit(any(m in sys.modules for m in ('httpx', 'pydantic', 'lithograph.client')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "from lithograph import Client; import sys; sys.exit(any(m in sys.modules for m in ('torch', 'fastapi')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert not hasattr(lithograph, "Clinet")


def test_generate_gives_the_picture_and_what_made_it(ours: lithograph.Client, apple: bytes, tmp_path: Path) -> None:
    result = ours.generate("a red apple", seed=1, steps=3)
    assert result.images[0].content == apple
    assert (result.request.steps, result.media_type) == (3, "image/png")
    assert len(repr(result)) < 2000  # its binary content would fill the terminal
    result.images[0].save(tmp_path / "apple.png")
    assert (tmp_path / "apple.png").read_bytes() == apple


def test_a_stream_has_the_steps_previews_and_the_result(ours: lithograph.Client, apple: bytes) -> None:
    *events, last = ours.stream("a red apple", previews=True, seed=1, steps=3)
    assert isinstance(last, ResultEvent)
    assert last.images[0].content == apple
    assert [event.step for event in events if isinstance(event, StepEvent)] == [1, 2, 3]
    assert any(isinstance(event, PreviewEvent) for event in events)


def test_closing_the_stream_cancels_the_request(ours: lithograph.Client, client: httpx.Client) -> None:
    cancelled, before = metric(client, "lithograph_cancelled_requests_total"), steps_made(client)
    stream = ours.stream("a cat", steps=100, num_images=8)
    assert isinstance(next(stream), StepEvent)
    stream.close()
    assert_stopped_early(client, before)
    assert metric(client, "lithograph_cancelled_requests_total") == cancelled + 1


def test_jobs(ours: lithograph.Client, apple: bytes) -> None:
    job = ours.submit("a red apple", seed=1, steps=3)
    assert job.status is JobStatus.QUEUED
    assert ours.wait(job).images[0].content == apple
    assert ours.job(job.id).status is JobStatus.SUCCEEDED
    long = ours.submit("a cat", steps=100, num_images=8)
    assert ours.cancel(long).status is JobStatus.CANCELLED
    with pytest.raises(lithograph.ServiceError, match="was cancelled"):
        ours.wait(long)
    late = ours.submit("a cat", steps=100, num_images=8, timeout_seconds=0.3)
    with pytest.raises(lithograph.ServiceError, match="time") as caught:
        ours.wait(late)
    assert caught.value.code == "timeout"


def test_errors_are_typed(ours: lithograph.Client) -> None:
    with pytest.raises(lithograph.RequestError, match="give a multiple of 64") as wrong:
        ours.generate("a cat", width=100)
    assert (wrong.value.status, wrong.value.code, wrong.value.problems[0].field) == (422, "invalid_request", "width")
    with pytest.raises(lithograph.RequestError, match="ink: has no version in embedded/adapters"):
        ours.generate("a cat", adapters={"ink": 0.5})
    with pytest.raises(lithograph.RequestError) as unknown:
        ours.job("nothing")
    assert unknown.value.status == 404
    with pytest.raises(lithograph.ServiceError) as late:
        ours.generate("a cat", steps=100, num_images=8, timeout_seconds=0.3)
    assert (late.value.status, late.value.code, late.value.is_busy) == (504, "timeout", False)
    with pytest.raises(lithograph.RequestError, match="give a multiple of 64"):
        next(iter(ours.stream("a cat", width=100)))
    with pytest.raises(lithograph.ServiceError, match="time"):
        list(ours.stream("a cat", steps=100, num_images=8, timeout_seconds=0.3))
    nowhere = f"http://127.0.0.1:{free_port()}"
    with lithograph.Client(nowhere) as lost, pytest.raises(lithograph.ServiceError, match="cannot be reached"):
        lost.info()


@pytest.mark.parametrize(
    "name", ["", "..", "../jobs", "a/b", "ink?x", "ink#x", "a\nb", "\0", "100%25", "\ud800", "苹果"]
)
def test_no_name_leads_to_another_endpoint(name: str) -> None:
    with answering(*[(404, "0")] * 5) as (url, asked), lithograph.Client(url) as remote:
        for call in (remote.load_adapter, remote.pin_adapter, remote.unpin_adapter, remote.job, remote.cancel):
            with pytest.raises(lithograph.RequestError):
                call(name)
    sent = quote(name, safe="", errors="replace").replace(".", "%2E")
    assert asked == [
        *(f"/v1/adapters/{sent}/{action}" for action in ("load", "pin", "unpin")),
        *[f"/v1/jobs/{sent}"] * 2,
    ]


@pytest.mark.parametrize(
    "url",
    ["", "nohost", "ftp://x", "http://", "http://[::1", "http://a\nb", "http://a b", "http://x:99999", "http://xn--"],
)
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(lithograph.RequestError, match="not an http:// or https:// URL") as caught:
        lithograph.Client(url)
    assert (caught.value.problems[0].field, caught.value.problems[0].value) == ("url", url)


def test_the_asynchronous_client_does_the_same(server: RunningServer, apple: bytes) -> None:
    async def run() -> None:
        async with lithograph.AsyncClient(server.url) as ours:
            assert (await ours.info())["status"] == "ready"
            first, second = await asyncio.gather(*(ours.generate("a red apple", seed=s, steps=3) for s in (1, 2)))
            assert first.images[0].content == apple != second.images[0].content
            heard = [event async for event in ours.stream("a red apple", seed=1, steps=3)]
            assert isinstance(heard[-1], ResultEvent)
            assert heard[-1].images[0].content == apple
            job = await ours.submit("a red apple", seed=1, steps=3)
            assert (await ours.wait(job.id)).images[0].content == apple
            assert (await ours.cancel(job)).status is JobStatus.SUCCEEDED
            for wrong in (ours.job(job), ours.load_adapter("ink"), ours.generate("")):
                with pytest.raises(lithograph.RequestError):
                    await wrong

    asyncio.run(run())


@contextmanager
def answering(*replies: tuple[int, str]) -> Iterator[tuple[str, list[str]]]:
    """Run a server that replies with these statuses and Retry-Afters, then 200; yield its URL and its requests."""
    left, asked = list(replies), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, seconds = left.pop(0) if left else (200, "0")
            self.send_response(status)
            self.send_header("Retry-After", seconds)
            self.end_headers()
            self.wfile.write(b'{"error": {"code": "busy", "message": "later"}}' if status == 503 else b"{}")

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_busy_service_is_retried_a_few_times() -> None:
    with answering((503, "0"), (429, "0")) as (url, asked), lithograph.Client(url) as ours:
        assert ours.info() == {}
        assert len(asked) == 3
    with answering(*[(503, "0")] * 5) as (url, asked), lithograph.Client(url, retries=1) as ours:
        with pytest.raises(lithograph.ServiceError, match="later") as caught:
            ours.info()
        assert (len(asked), caught.value.is_busy) == (2, True)
    with answering((502, "0")) as (url, asked), lithograph.Client(url) as ours:
        with pytest.raises(lithograph.ServiceError, match="replied 502"):
            ours.info()
        assert len(asked) == 1


def test_generate_can_have_a_server_draw(server: RunningServer, apple: bytes, tmp_path: Path) -> None:
    options = ("--seed", "1", "--steps", "3", "--server", server.url)
    finished = run_lithograph("generate", "a red apple", "-o", "a.png", *options, "--num-images", "2", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["a-0.png seed 1", "a-1.png seed 2"]
    assert (tmp_path / "a-0.png").read_bytes() == apple
    nowhere = f"http://127.0.0.1:{free_port()}"
    for arguments, message in (
        (("a cat", "--server", server.url, "--width", "100"), "error: width = 100: "),
        (("a cat", "--server", nowhere), f"error: {nowhere} cannot be reached"),
        (("a cat", "--server", server.url, "--flavour", "final"), "leave out --flavour"),
        (("--server", server.url), "--server needs a PROMPT"),
    ):
        refused = run_lithograph("generate", *arguments, cwd=tmp_path)
        assert refused.returncode != 0
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("name", ["draw", "draw_async", "draw_openai"])
def test_the_examples_run(server: RunningServer, tmp_path: Path, name: str) -> None:
    finished = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", server.url], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert list(tmp_path.glob("*.png"))
