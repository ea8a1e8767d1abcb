"""A stand-in for S3 that serves a directory, with configurable delays and faults.

It supports reading (ListObjectsV2, GetObject, HeadObject) and checks no signature. Objects are the files of the directory,
so that links make a storage of thousands of objects.
"""

import hashlib
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = Literal["deny", "fail", "hang", "drip", "reset"]
"""403; 500; no answer; a byte of the body every ten seconds; a connection that breaks off."""

_PAGE = 1000
_DRIP_SECONDS = 10.0
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class ObjectStore(ThreadingHTTPServer):
    """One bucket. Faults may be changed at any time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, *, bucket: str = "adapters", round_trip_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.bucket = bucket
        self.round_trip_seconds = round_trip_seconds
        self.faults: dict[str, Fault] = {}
        """Faults by a regular expression of keys; ``list`` is the key of listings."""
        self.requests: Counter[str] = Counter()
        """Number of requests by kind: ``list``, or the end of the key."""
        self._etags: dict[tuple[int, int, int], str] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of clients that disconnect."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """The endpoint URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def keys(self, prefix: str) -> list[str]:
        """Return the keys in order, as S3 does."""
        found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return sorted(key for key in found if key.startswith(prefix))

    def etag(self, path: Path) -> str:
        """Return the MD5 of a file, quoted."""
        status = path.stat()
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        if identity not in self._etags:
            self._etags[identity] = f'"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}"'
        return self._etags[identity]

    def fault_of(self, key: str) -> Fault | None:
        """Return the fault of a key."""
        return next((fault for pattern, fault in self.faults.items() if re.fullmatch(pattern, key)), None)


@contextmanager
def serving(store: ObjectStore) -> Iterator[ObjectStore]:
    """Serve in a thread until the context ends."""
    thread = threading.Thread(target=store.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectStore

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        kind = key.rpartition("/")[2] or "list"
        self.server.requests[kind] += 1
        time.sleep(self.server.round_trip_seconds)
        match self.server.fault_of(key or "list"):
            case "deny":
                self._error(403, "AccessDenied")
            case "fail":
                self._error(500, "InternalError")
            case "hang":
                self._wait()
            case "reset":
                self.close_connection = True
            case fault if bucket != self.server.bucket:
                self._error(404, "NoSuchBucket")
            case fault if key:
                self._object(key, drips=fault == "drip")
            case _:
                self._list(query)

    do_HEAD = do_GET

    def _object(self, key: str, *, drips: bool) -> None:
        path = self.server.root / key
        try:
            content, headers = path.read_bytes(), {"ETag": self.server.etag(path)}
        except OSError:
            self._error(404, "NoSuchKey")
            return
        status = 200
        if match := _RANGE.fullmatch(self.headers.get("Range", "")):
            begin, end = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            status, content = 206, content[begin : end + 1]
        if not drips:
            self._reply(status, content, headers)
            return
        self._reply(status, b"", headers, length=len(content))
        for byte in content:
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                return
            time.sleep(_DRIP_SECONDS)

    def _list(self, query: dict[str, str]) -> None:
        after, most = query.get("continuation-token", ""), min(_PAGE, int(query.get("max-keys", _PAGE)))
        keys = [key for key in self.server.keys(query.get("prefix", "")) if key > after]
        entries = "".join(self._entry(key) for key in keys[:most])
        more = len(keys) > most
        token = f"<NextContinuationToken>{escape(keys[most - 1])}</NextContinuationToken>" if more else ""
        text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        self._reply(200, text.encode(), {"Content-Type": "application/xml"})

    def _entry(self, key: str) -> str:
        path = self.server.root / key
        return (
            f"<Contents><Key>{escape(key)}</Key><Size>{path.stat().st_size}</Size><ETag>{self.server.etag(path)}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        )

    def _error(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>by the stand-in</Message></Error>"
        self._reply(status, text.encode(), {"Content-Type": "application/xml"})

    def _reply(self, status: int, content: bytes, headers: dict[str, str], *, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _wait(self) -> None:
        """Wait until the client gives up."""
        with suppress(OSError):
            self.connection.recv(1)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Log nothing."""
