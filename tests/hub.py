"""A model hub on loopback with one model: the embedded one, under LongCat-Image's name."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from longcat.model.flavour import EMBEDDED_FOLDER
from longcat.model.published.models import HUB_IDS

COMMIT = "c0ffee" + "0" * 34


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: dict[str, Path]
    downloads: list[str]
    token: str | None = None
    """Token without which nothing is answered."""
    holds: threading.Event | None = None
    """Event before which the second half of the transformer's weights is not sent."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        if self.token is not None and self.headers["Authorization"] != f"Bearer {self.token}":
            self._send_json({"error": "a token is needed"}, status=401)
            return
        _, found, name = path.partition(f"/{HUB_IDS['final']}/resolve/{COMMIT}/")
        if found and name in self.files:
            content = self.files[name].read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if with_body:
                self.downloads.append(name)
            is_held = self.holds is not None and name.startswith("transformer/diffusion")
            self._send(
                content, with_body=with_body, is_held=is_held, headers={"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
            )
        elif path == f"/api/models/{HUB_IDS['final']}/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            self._send_json({"id": HUB_IDS["final"], "sha": COMMIT, "siblings": siblings})
        elif path == f"/api/models/{HUB_IDS['final']}/tree/{COMMIT}":
            listing = [
                {
                    "type": "file",
                    "path": name,
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, file in self.files.items()
            ]
            self._send_json(listing)
        else:
            self._send_json({"error": f"nothing at {path}"}, status=404)

    def _send_json(self, reply: object, *, status: int = 200) -> None:
        self._send(
            json.dumps(reply).encode(), with_body=True, status=status, headers={"Content-Type": "application/json"}
        )

    def _send(
        self, content: bytes, *, with_body: bool, headers: dict[str, str], status: int = 200, is_held: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            half = len(content) // 2 if is_held else 0
            self.wfile.write(content[:half])
            if is_held and self.holds is not None:
                self.holds.wait(120)
            self.wfile.write(content[half:])


@contextmanager
def hub(token: str | None = None, *, holds: threading.Event | None = None) -> Iterator[tuple[str, list[str]]]:
    """Run the hub; yield its URL and the names of files downloaded from it."""
    files = {
        path.relative_to(EMBEDDED_FOLDER).as_posix(): path for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()
    }
    downloads: list[str] = []
    handler = type("Hub", (_Hub,), {"files": files, "downloads": downloads, "token": token, "holds": holds})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloads
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
