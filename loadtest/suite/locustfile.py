"""Who asks for pictures: users for locust. They check what they get, and write down every request.

    locust -f loadtest/suite/locustfile.py --host http://127.0.0.1:8000 --headless -u 8 -r 8 -t 60s Asker

Classes that are named on the command line run: ``Asker`` in a closed loop, ``Stranger`` in an open one, ``Watcher`` streams,
``Leaver`` goes away in the middle, ``Dawdler`` has a slow connection. Without ``--headless`` there is locust's own web page.
"""

# locust comes first: it makes sockets cooperative before anything else has a hold of them.
from locust import User, constant, events, task  # isort: skip

import http.client
import json
import struct
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
import numpy as np
import requests
from gevent.pool import Pool
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.suite import sample
from loadtest.suite.mix import Order, orders
from loadtest.suite.sample import Outcome, Sample

_TIMEOUT_SECONDS = 600.0
_MOST_PATIENCE_SECONDS = 2.0
"""How much of a Retry-After is waited for: a load test is short."""
_KEPT_PICTURES = 4
"""Of a run: for people to look at."""
_KEPT_LEAST_PX = 128
_PIECES = 20
_PIECE_PAUSE_SECONDS = 0.05
_SIP_BYTES = 1024
_SIP_PAUSE_SECONDS = 0.02
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]  # locust leaves it untyped
def _add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--scenario", default="manual", help="what this run is called in the samples")
    parser.add_argument("--adapters", default="", help="names, the most popular first: ink,oil; none by default")
    parser.add_argument("--rate", type=float, default=1.0, help="a Stranger's requests a second (Poisson)")
    parser.add_argument("--seed", type=int, default=0, help="of what is asked")
    parser.add_argument("--samples", default="", help="file to append a JSON line a request to")
    parser.add_argument("--pictures", default="", help="directory for some of the pictures")


@events.init.add_listener  # type: ignore[untyped-decorator]
def _share_orders(environment: Environment, **_: Any) -> None:
    options = _options(environment)
    names = tuple(filter(None, options.adapters.split(",")))
    _Person.orders = orders(names, options.seed)
    _Person.random = np.random.default_rng(options.seed)


def _options(environment: Environment) -> Namespace:
    assert isinstance(environment.parsed_options, Namespace)
    return environment.parsed_options


class WrongReplyError(Exception):
    """A reply that is not what was asked for."""


class Request:
    """One request under way, and what is known of it so far."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.outcome: Outcome = "failed"
        self.status = 0
        self.first_event_seconds: float | None = None
        self.content = b""

    def check(self, content_type: str | None, applied: str | None) -> None:
        """See that it is a PNG of the size, drawn with the adapter. Raises ``WrongReplyError``."""
        order = self.order
        if self.status != 200:
            raise WrongReplyError(f"{self.status}: {self.content[:300].decode(errors='replace')}")
        if content_type != "image/png" or not self.content.startswith(_SIGNATURE):
            raise WrongReplyError(f"no PNG but {content_type}, {len(self.content)} bytes")
        size = struct.unpack(">II", self.content[16:24])
        if size != (order.width_px, order.height_px):
            raise WrongReplyError(f"a picture of {size[0]} x {size[1]} px")
        if order.adapter is not None and not (applied or "").startswith(f"{order.adapter}@"):
            raise WrongReplyError(f"adapters applied: {applied}")
        self.outcome = "picture"


class _Person(User):
    """Asks, checks, and writes down."""

    abstract = True
    orders: ClassVar[Iterator[Order]]
    """One stream of them for all users."""
    random: ClassVar[np.random.Generator]
    kept: ClassVar[int] = 0
    """Pictures."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.session = requests.Session()
        self.session.trust_env = False
        self.options = _options(environment)
        assert self.host is not None
        self.url = f"{self.host.rstrip('/')}/generate"

    @contextmanager
    def asking(self) -> Iterator[Request]:
        """A request; what happens in the body is timed, and a failure there is the request's."""
        request = Request(next(self.orders))
        begin, start = time.time(), time.perf_counter()
        with self.environment.events.request.measure("POST", type(self).__name__) as meta:
            yield request
        if request.outcome == "picture":
            meta["response_length"] = len(request.content)
        self._write_down(request, begin, time.perf_counter() - start, meta["exception"])

    def draw(self) -> None:
        """Ask for a picture and wait for it. When refused, wait as told before asking again."""
        patience_seconds = 0.0
        with self.asking() as request:
            reply = self.session.post(self.url, json=request.order.body(), timeout=_TIMEOUT_SECONDS)
            request.status, request.content = reply.status_code, reply.content
            if reply.status_code == 429:
                patience_seconds = min(float(reply.headers["Retry-After"]), _MOST_PATIENCE_SECONDS)
                request.outcome = "refused"
            else:
                request.check(reply.headers.get("Content-Type"), reply.headers.get("X-Adapters"))
        gevent.sleep(patience_seconds)

    def _write_down(self, request: Request, begin: float, seconds: float, error: Exception | None) -> None:
        order, picture = request.order, None
        is_wanted = self.options.pictures and order.width_px >= _KEPT_LEAST_PX and _Person.kept < _KEPT_PICTURES
        if is_wanted and request.outcome == "picture" and request.content:
            _Person.kept += 1
            picture = f"{self.options.scenario}-{_Person.kept}.png"
            Path(self.options.pictures, picture).write_bytes(request.content)
        if not self.options.samples:
            return
        sample.write(
            Path(self.options.samples),
            Sample(
                scenario=self.options.scenario,
                kind=type(self).__name__,
                begin_seconds=begin,
                seconds=seconds,
                outcome="failed" if error else request.outcome,
                status=request.status,
                language=order.language,
                adapter=order.adapter,
                size=f"{order.width_px}x{order.height_px}",
                steps=order.steps,
                prompt=order.prompt,
                first_event_seconds=request.first_event_seconds,
                picture=picture,
                problem=f"{type(error).__name__}: {error}" if error else None,
            ),
        )


class Asker(_Person):
    """Asks again as soon as there is an answer."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        """One picture."""
        self.draw()


class Stranger(_Person):
    """Everybody out there: requests come at random times, whatever has been answered."""

    fixed_count = 1

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._under_way = Pool()

    def wait_time(self) -> float:
        """Until the next one comes, in seconds: exponential, so that arrivals are Poisson."""
        return float(self.random.exponential(1 / self.options.rate))

    @task
    def come(self) -> None:
        """Ask, and do not wait."""
        self._under_way.spawn(self.draw)

    def on_stop(self) -> None:
        """Wait for what was asked."""
        self._under_way.join()


class Watcher(_Person):
    """Streams: sees every step, a small picture with each, and the result."""

    fixed_count = 2
    wait_time = constant(0)

    @task
    def watch(self) -> None:
        """One picture, from its first step to the last."""
        with self.asking() as request:
            begin, seen = time.perf_counter(), []
            body = request.order.body() | {"stream": True, "previews": True}
            reply = self.session.post(self.url, json=body, stream=True, timeout=_TIMEOUT_SECONDS)
            request.status = reply.status_code
            if reply.status_code != 200:
                raise WrongReplyError(f"{reply.status_code}: {reply.text[:300]}")
            for name, data in _server_sent(reply):
                if request.first_event_seconds is None:
                    request.first_event_seconds = time.perf_counter() - begin
                seen.append((name, data.get("step")))
            steps = [step for name, step in seen if name == "progress"]
            if steps != list(range(1, request.order.steps + 1)) or seen[-1][0] != "result":
                raise WrongReplyError(f"a stream of {seen}")
            request.outcome = "picture"


class Leaver(_Person):
    """Goes away before the picture is done: while waiting, or in the middle of a stream."""

    fixed_count = 2
    wait_time = constant(0.2)

    @task
    def leave_waiting(self) -> None:
        """Close the connection without having read anything."""
        with self.asking() as request:
            connection = _connect(self.url)
            connection.request("POST", "/generate", json.dumps(request.order.body()), _JSON)
            gevent.sleep(float(self.random.uniform(0.01, 0.2)))
            connection.close()
            request.outcome = "left"

    @task
    def leave_watching(self) -> None:
        """Close the connection after the first step."""
        with self.asking() as request:
            body = request.order.body() | {"stream": True}
            with self.session.post(self.url, json=body, stream=True, timeout=_TIMEOUT_SECONDS) as reply:
                request.status = reply.status_code
                next(_server_sent(reply))
            request.outcome = "left"


class Dawdler(_Person):
    """Sends its request in small pieces, and reads the picture in sips."""

    fixed_count = 2
    wait_time = constant(0)

    @task
    def dawdle(self) -> None:
        """One picture, in its own time."""
        with self.asking() as request:
            body = json.dumps(request.order.body()).encode()
            connection = _connect(self.url)
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


_JSON = {"Content-Type": "application/json"}


def _connect(url: str) -> http.client.HTTPConnection:
    address = urlsplit(url)
    assert address.hostname is not None
    return http.client.HTTPConnection(address.hostname, address.port, timeout=_TIMEOUT_SECONDS)


def _server_sent(reply: requests.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Events by name. Raises ``WrongReplyError`` at one that is called error."""
    name = ""
    for line in reply.iter_lines(chunk_size=1, decode_unicode=True):
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            if name == "error":
                raise WrongReplyError(line)
            yield name, json.loads(line.removeprefix("data:"))
