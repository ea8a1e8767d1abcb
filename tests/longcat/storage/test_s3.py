"""S3 stores other than AWS, and stores that deny access, by a server with their replies."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage

_CHECKSUM_HEADERS = ("x-amz-sdk-checksum-algorithm", "x-amz-checksum-", "x-amz-trailer", "x-amz-checksum-mode")
Answer = Callable[[BaseHTTPRequestHandler], tuple[int, bytes]]


@contextmanager
def store(answer: Answer) -> Iterator[str]:
    """Serve a store, and return its endpoint."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answer(self)
            self.send_response(status)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def error_reply(status: int, code: str, message: str) -> Answer:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return lambda _: (status, body)


def without_checksums(request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
    """Reply like stores that support no checksum but Content-MD5."""
    unknown = [name for name in request.headers if name.lower().startswith(_CHECKSUM_HEADERS)]
    if unknown or "aws-chunked" in request.headers.get("Content-Encoding", ""):
        return error_reply(400, "InvalidArgument", f"{unknown} is not supported")(request)
    return 200, b""


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "tester"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_CONFIG_FILE", str(tmp_path / "none")),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("source", ["option", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_store_without_checksums_is_published_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(2**20))
    with store(without_checksums) as endpoint:
        if source != "option":
            monkeypatch.setenv(source, endpoint)
        storage = open_storage("s3://bucket/a", endpoint_url=endpoint if source == "option" else None)
        etag = storage.create("latest", b"1")
        storage.create("adapter.safetensors", large)
        storage.replace("latest", b"2", etag=etag)
        storage.read("latest")
        storage.delete("latest")


ACTIONS: dict[str, Callable[[Storage, Path], object]] = {
    "list": lambda storage, _: list(storage.list()),
    "read": lambda storage, _: storage.read("ink/latest"),
    "create": lambda storage, _: storage.create("ink/latest", b"1"),
    "create in parts": lambda storage, folder: storage.create("ink/1/adapter.safetensors", folder / "large"),
    "replace": lambda storage, _: storage.replace("ink/latest", b"1", etag='"0"'),
    "delete": lambda storage, _: storage.delete("ink/latest"),
}
REFUSALS = (
    (400, "InvalidArgument", StorageError, "check endpoint, region and bucket"),
    (403, "AccessDenied", StorageError, "check the credentials"),
    (404, "NoSuchBucket", StorageError, "create it first"),
    (404, "NoSuchKey", StorageMissingError, ""),
    (405, "MethodNotAllowed", StorageError, "check endpoint"),
    (412, "PreconditionFailed", StorageConflictError, ""),
    (501, "NotImplemented", StorageError, "supports conditional writes"),
)


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_the_message_of_the_store_is_shown(tmp_path: Path, action: Callable[[Storage, Path], object]) -> None:
    (tmp_path / "large").write_bytes(bytes(9 * 2**20))
    message = "the words of the store"
    answers: list[Answer] = []
    with store(lambda request: answers[-1](request)) as endpoint:
        storage = open_storage("s3://bucket/a", endpoint_url=endpoint)
        for status, code, kind, remedy in REFUSALS:
            answers.append(error_reply(status, code, message))
            with pytest.raises(StorageError) as caught:
                action(storage, tmp_path)
            assert type(caught.value) is kind
            (problem,) = caught.value.problems
            assert f"S3 answered {code}: {message}" in problem.problem
            assert remedy in problem.remedy


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_a_web_page_that_is_no_store_is_an_error_of_storage(
    tmp_path: Path, action: Callable[[Storage, Path], object]
) -> None:
    (tmp_path / "large").write_bytes(bytes(9 * 2**20))
    with store(lambda _: (404, b"<!doctype html><p>Not here")) as endpoint, pytest.raises(StorageError, match="404"):
        action(open_storage("s3://bucket/a", endpoint_url=endpoint), tmp_path)


@pytest.mark.parametrize("action", [ACTIONS["list"], ACTIONS["create in parts"]], ids=["list", "create in parts"])
def test_an_answer_that_is_no_xml_is_an_error_of_storage(
    tmp_path: Path, action: Callable[[Storage, Path], object]
) -> None:
    (tmp_path / "large").write_bytes(bytes(9 * 2**20))
    with store(lambda _: (200, b"<!doctype html><p>Welcome")) as endpoint, pytest.raises(StorageError):
        action(open_storage("s3://bucket/a", endpoint_url=endpoint), tmp_path)
