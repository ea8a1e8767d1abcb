import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from studio.jobs.cluster_settings import ClusterSettings
from tests.lithograph.kubernetes.test_job import kubeconfig
from tests.studio.jobs.cluster_api import Api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    kept = Api()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, reply = kept.answer(self.command, self.path, body)
            content = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(reply, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        yield kept
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(api: Api, tmp_path: Path) -> ClusterSettings:
    return ClusterSettings(
        kubeconfig=str(tmp_path / "kubeconfig"), image="trainer:1", data_claim="pictures", data_dir=tmp_path / "data"
    )
