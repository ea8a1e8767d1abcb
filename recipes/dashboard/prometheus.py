"""A Prometheus server and its query results."""

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

_START_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of a reply."""

    labels: Mapping[str, str]
    times: tuple[float, ...]
    """Times in seconds since 1970."""
    values: tuple[float, ...]


class Prometheus:
    """A running server and its HTTP API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=60)

    def close(self) -> None:
        """Stop Prometheus."""
        self._client.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """Query the API and return its answer."""
        reply = self._client.get(path, params=parameters)
        body = reply.json()
        if body["status"] != "success":
            raise ValueError(f"{parameters}: {body['error']}")
        return body["data"]

    def query_range(self, query: str, *, begin: float, end: float, step_seconds: float) -> list[Series]:
        """Return a query's values over a period."""
        found = self.get("/query_range", query=query, start=begin, end=end, step=step_seconds)["result"]
        return [
            Series(
                labels=one["metric"],
                times=tuple(float(at) for at, _ in one["values"]),
                values=tuple(float(value) for _, value in one["values"]),
            )
            for one in found
        ]


@contextmanager
def running(folder: Path, port: int, rules: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """Run a Prometheus on loopback that scrapes every second; ``targets``: host and port by job."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
        ],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    log = folder / "prometheus.log"
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"],
            stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        wait_for(f"{url}/-/ready", process, log)
        with closing(Prometheus(url)) as prometheus:
            yield prometheus
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until it answers with 200. Raises ``RuntimeError`` with the log if the process ends or the time is over."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer:\n{log.read_text()}")
