"""Users for locust, which request pictures, check the replies and record every request.

    locust -f loadtest/suite/locustfile.py --host http://127.0.0.1:8000 --headless -u 8 -r 8 -t 60s ClosedLoopUser

The classes named on the command line run: ``ClosedLoopUser`` and ``OpenLoopUser`` send plain requests, ``StreamingUser``
streams, ``CancellingUser`` disconnects before the end, ``SlowUser`` has a slow connection. Without ``--headless``, locust
serves its own web page.
"""

# locust comes first: it makes sockets cooperative before other modules import them.
from locust import User, constant, events, task  # isort: skip

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import gevent
import numpy as np
import requests
from gevent.pool import Pool
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.suite import sample
from loadtest.suite.exchange import JSON_HEADERS, TIMEOUT_SECONDS, Request, WrongReplyError, connect, server_sent
from loadtest.suite.mix import LoadRequest, load_requests
from loadtest.suite.sample import Measurement

_MOST_PATIENCE_SECONDS = 2.0
"""Longest wait for a Retry-After: a load test is short."""
_KEPT_PICTURES = 4
"""Pictures kept in a run, for the report."""
_KEPT_LEAST_PX = 128
_PIECES = 20
_PIECE_PAUSE_SECONDS = 0.05
_SIP_BYTES = 1024
_SIP_PAUSE_SECONDS = 0.02


@events.init_command_line_parser.add_listener
def _add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--scenario", default="manual", help="name of this run in the samples")
    parser.add_argument("--adapters", default="", help="names, the most popular first: ink,oil; none by default")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second of an OpenLoopUser (Poisson)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the requests")
    parser.add_argument("--samples", default="", help="file to append a JSON line a request to")
    parser.add_argument("--pictures", default="", help="directory for a few of the pictures")


@events.init.add_listener
def _share_orders(environment: Environment, **_: Any) -> None:
    options = _options(environment)
    names = tuple(filter(None, options.adapters.split(",")))
    _ImageUser.load_requests = load_requests(names, options.seed)
    _ImageUser.random = np.random.default_rng(options.seed)


def _options(environment: Environment) -> Namespace:
    assert isinstance(environment.parsed_options, Namespace)
    return environment.parsed_options


class _ImageUser(User):
    """A user that sends requests, checks the replies and records them."""

    abstract = True
    load_requests: ClassVar[Iterator[LoadRequest]]
    """Source of requests, shared by all users."""
    random: ClassVar[np.random.Generator]
    kept: ClassVar[int] = 0
    """Number of pictures kept."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.session = requests.Session()
        self.session.trust_env = False
        self.options = _options(environment)
        assert self.host is not None
        self.url = f"{self.host.rstrip('/')}/generate"

    @contextmanager
    def asking(self) -> Iterator[Request]:
        """Yield a request, time the body, and record an exception as the request's failure."""
        request = Request(next(self.load_requests))
        begin, start = time.time(), time.perf_counter()
        with self.environment.events.request.measure("POST", type(self).__name__) as meta:
            yield request
        if request.outcome == "picture":
            meta["response_length"] = len(request.content)
        self._write_down(request, begin, time.perf_counter() - start, meta["exception"])

    def draw(self) -> None:
        """Request a picture and wait for it. After a 429, wait for its Retry-After before the next request."""
        patience_seconds = 0.0
        with self.asking() as request:
            reply = self.session.post(self.url, json=request.load_request.body(), timeout=TIMEOUT_SECONDS)
            request.status, request.content = reply.status_code, reply.content
            if reply.status_code == 429:
                patience_seconds = min(float(reply.headers["Retry-After"]), _MOST_PATIENCE_SECONDS)
            request.check(reply.headers.get("Content-Type"), reply.headers.get("X-Adapters"))
        gevent.sleep(patience_seconds)

    def _write_down(self, request: Request, begin: float, seconds: float, error: Exception | None) -> None:
        load_request, picture = request.load_request, None
        is_wanted = (
            self.options.pictures and load_request.width_px >= _KEPT_LEAST_PX and _ImageUser.kept < _KEPT_PICTURES
        )
        if is_wanted and request.outcome == "picture" and request.content:
            _ImageUser.kept += 1
            picture = f"{self.options.scenario}-{_ImageUser.kept}.png"
            Path(self.options.pictures, picture).write_bytes(request.content)
        if not self.options.samples:
            return
        sample.write(
            Path(self.options.samples),
            Measurement(
                scenario=self.options.scenario,
                kind=type(self).__name__,
                begin_seconds=begin,
                seconds=seconds,
                outcome="failed" if error else request.outcome,
                status=request.status,
                language=load_request.language,
                adapter=load_request.adapter,
                size=f"{load_request.width_px}x{load_request.height_px}",
                steps=load_request.steps,
                prompt=load_request.prompt,
                first_event_seconds=request.first_event_seconds,
                picture=picture,
                problem=f"{type(error).__name__}: {error}" if error else None,
            ),
        )


class ClosedLoopUser(_ImageUser):
    """A user that sends its next request once the previous one is answered."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        """Request one picture."""
        self.draw()


class OpenLoopUser(_ImageUser):
    """An open loop: requests arrive at random times, independent of replies."""

    fixed_count = 1

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._under_way = Pool()

    def wait_time(self) -> float:
        """Return the seconds until the next request, exponentially distributed: Poisson arrivals."""
        return float(self.random.exponential(1 / self.options.rate))

    @task
    def come(self) -> None:
        """Send a request without waiting for the reply."""
        self._under_way.spawn(self.draw)

    def on_stop(self) -> None:
        """Wait for the requests under way."""
        self._under_way.join()


class StreamingUser(_ImageUser):
    """A user of streams with previews."""

    fixed_count = 2
    wait_time = constant(0)

    @task
    def watch(self) -> None:
        """Stream one picture, from its first step to the last."""
        with self.asking() as request:
            begin, seen = time.perf_counter(), []
            body = request.load_request.body() | {"stream": True, "previews": True}
            reply = self.session.post(self.url, json=body, stream=True, timeout=TIMEOUT_SECONDS)
            if not request.is_stream(reply):
                return
            for name, data in server_sent(reply):
                if request.first_event_seconds is None:
                    request.first_event_seconds = time.perf_counter() - begin
                seen.append((name, data.get("step")))
            steps = [step for name, step in seen if name == "progress"]
            if steps != list(range(1, request.load_request.steps + 1)) or seen[-1][0] != "result":
                raise WrongReplyError(f"a stream of {seen}")
            request.outcome = "picture"


class CancellingUser(_ImageUser):
    """A user that disconnects before the picture is finished: while waiting, or in a stream."""

    fixed_count = 2
    wait_time = constant(0.2)

    @task
    def leave_waiting(self) -> None:
        """Close the connection without reading."""
        with self.asking() as request:
            connection = connect(self.url)
            connection.request("POST", "/generate", json.dumps(request.load_request.body()), JSON_HEADERS)
            gevent.sleep(float(self.random.uniform(0.01, 0.2)))
            connection.close()
            request.outcome = "left"

    @task
    def leave_watching(self) -> None:
        """Close the connection after the first step."""
        with self.asking() as request:
            body = request.load_request.body() | {"stream": True}
            with self.session.post(self.url, json=body, stream=True, timeout=TIMEOUT_SECONDS) as reply:
                if request.is_stream(reply):
                    next(server_sent(reply))
                    request.outcome = "left"


class SlowUser(_ImageUser):
    """A user with a slow connection: it sends and reads in small pieces."""

    fixed_count = 2
    wait_time = constant(0)

    @task
    def dawdle(self) -> None:
        """Request one picture over the slow connection."""
        with self.asking() as request:
            body = json.dumps(request.load_request.body()).encode()
            connection = connect(self.url)
            connection.putrequest("POST", "/generate")
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            for first in range(0, len(body), -(-len(body) // _PIECES)):
                connection.send(body[first : first + -(-len(body) // _PIECES)])
                gevent.sleep(_PIECE_PAUSE_SECONDS)
            reply = connection.getresponse()
            request.status = reply.status
            while sip := reply.read(_SIP_BYTES):
                request.content += sip
                gevent.sleep(_SIP_PAUSE_SECONDS)
            connection.close()
            request.check(reply.getheader("Content-Type"), reply.getheader("X-Adapters"))
