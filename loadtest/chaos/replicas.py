"""Three servers with one storage of jobs on S3, which are killed while they work on jobs.

Each job must succeed, with the picture that a server without faults makes, and each webhook must be delivered.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from standardwebhooks import Webhook

from loadtest.chaos.outcome import ScenarioOutcome
from loadtest.chaos.s3 import BUCKET, CREDENTIALS, s3_server
from loadtest.chaos.server import ChaosServer, running
from loadtest.chaos.stage import Stage

_SERVERS = 3
_LEASE_SECONDS = 5
_SIGNED_WITH = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
_SUBMIT_SECONDS = 1.0
"""Mean time between two submissions."""
_KILL_SECONDS = (3.0, 20.0)
"""Shortest and longest time between two kills."""
_LIMIT_SECONDS = 1800.0
"""Time limit of all jobs together."""
_REFERENCE_SECONDS = 300.0


@dataclass(kw_only=True)
class _Campaign:
    """The jobs of one run."""

    servers: Sequence[ChaosServer]
    hook: str
    accepted: dict[str, int] = field(default_factory=dict)
    """Seeds by job: those that were answered 202."""
    refused: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    """Deliveries by job."""
    starting: dict[ChaosServer, asyncio.Task[None]] = field(default_factory=dict)
    """Servers that were killed and are not ready yet: at times all of them."""
    forged: int = 0
    kills: int = 0

    def body(self, seed: int) -> dict[str, Any]:
        """Return the request of a seed."""
        return {"prompt": "a red apple", "seed": seed, "steps": 4, "width": 64, "height": 64}

    async def submit(self, number: int) -> None:
        """Submit jobs to random servers until so many are accepted."""
        async with _http() as http:
            for seed in range(number):
                while True:
                    body = self.body(seed) | {"async": True, "webhook_url": self.hook}
                    reply = await _ask(http, "POST", f"{random.choice(self.servers).url}/generate", json=body)
                    if reply is not None and reply.status_code == 202:
                        self.accepted[reply.json()["id"]] = seed
                        break
                    self.refused["no reply" if reply is None else str(reply.status_code)] += 1
                    await asyncio.sleep(0.3)
                await asyncio.sleep(random.expovariate(1 / _SUBMIT_SECONDS))

    async def kill(self) -> None:
        """Kill a random server at random moments, until cancelled; start each again."""
        while True:
            await asyncio.sleep(random.uniform(*_KILL_SECONDS))
            if up := [server for server in self.servers if server not in self.starting]:
                server = random.choice(up)
                server.signal("main", signal.SIGKILL)
                self.kills += 1
                self.starting[server] = asyncio.create_task(self._start(server))

    async def _start(self, server: ChaosServer) -> None:
        await server.replace()
        del self.starting[server]

    async def results(self) -> dict[str, bytes | str]:
        """Return the picture of each job, from a random server; the last reply where there is none in time."""
        found: dict[str, bytes | str] = {}
        deadline = time.monotonic() + _LIMIT_SECONDS
        async with _http() as http:
            while len(found) < len(self.accepted):
                for job in self.accepted.keys() - found.keys():
                    reply = await _ask(http, "GET", f"{random.choice(self.servers).url}/v1/jobs/{job}/result")
                    if reply is not None and reply.status_code == 200:
                        found[job] = reply.content
                    elif time.monotonic() > deadline:
                        found[job] = "no reply" if reply is None else f"{reply.status_code} {reply.text[:200]}"
                    elif reply is not None and reply.status_code not in (409, 429, 503):
                        found[job] = f"{reply.status_code} {reply.text[:200]}"
                await asyncio.sleep(1)
        return found

    async def references(self, url: str) -> dict[int, bytes]:
        """Return the picture of each seed, by a server without faults."""
        async with _http() as http:
            pictures = {}
            for seed in self.accepted.values():
                reply = await http.post(f"{url}/generate", json=self.body(seed), timeout=_REFERENCE_SECONDS)
                reply.raise_for_status()
                pictures[seed] = reply.content
            return pictures

    def receive(self, headers: dict[str, str], body: bytes) -> None:
        """Count a webhook, whose signature must be right and whose id must be the job's."""
        try:
            event = Webhook(_SIGNED_WITH).verify(body, headers)
        except Exception:  # any: the library raises its own
            self.forged += 1
            return
        job = event["data"]["id"]
        self.forged += not event["id"] == headers["webhook-id"] == f"msg_{job}"
        self.delivered[job] += 1


async def lasting_jobs(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Kill three servers with SIGKILL at random, while clients submit jobs to all of them."""
    outcome = ScenarioOutcome(name=f"{stage.jobs} lasting jobs, {_SERVERS} servers, kill -9")
    async with s3_server(stage.folder / "seaweed-jobs") as proxy, AsyncExitStack() as stack:
        options = [
            *("--jobs-storage", f"s3://{BUCKET}/jobs", "--jobs-lease-seconds", str(_LEASE_SECONDS)),
            *("--jobs-storage-endpoint-url", f"http://127.0.0.1:{proxy.port}"),
            *("--webhook-secret", _SIGNED_WITH, "--webhook-host", "127.0.0.1:*"),
        ]
        servers = [ChaosServer(stage.folder, options, environment=CREDENTIALS) for _ in range(_SERVERS)]
        for one in servers:
            await stack.enter_async_context(running(one))
        campaign = _Campaign(servers=servers, hook="")
        campaign.hook = await stack.enter_async_context(_receiver(campaign))
        begin = time.monotonic()
        killing = asyncio.create_task(campaign.kill())
        await campaign.submit(stage.jobs)
        found = await campaign.results()
        killing.cancel()
        await asyncio.wait([killing])
        await asyncio.gather(*campaign.starting.values())
        outcome.notes |= {"kills": campaign.kills, "seconds": round(time.monotonic() - begin)}
        await _wait_for_webhooks(campaign)
        references = await campaign.references(server.url)
        for one in servers:
            server.orphans += one.orphans
    _judge(campaign, found, references, outcome)
    return [stage.finish(outcome, server)]


async def _wait_for_webhooks(campaign: _Campaign) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_LIMIT_SECONDS):
            while campaign.accepted.keys() - campaign.delivered.keys():
                await asyncio.sleep(1)


def _judge(
    campaign: _Campaign, found: dict[str, bytes | str], references: dict[int, bytes], outcome: ScenarioOutcome
) -> None:
    lost = {job: result for job, result in found.items() if isinstance(result, str)}
    wrong = [job for job, result in found.items() if job not in lost and result != references[campaign.accepted[job]]]
    missing = campaign.accepted.keys() - campaign.delivered.keys()
    outcome.notes |= {
        "accepted": len(campaign.accepted), "lost": len(lost), "other pictures": len(wrong),
        "different pictures of all": len(set(references.values())), "webhooks missing": len(missing),
        "webhooks delivered twice or more": sum(count > 1 for count in campaign.delivered.values()),
        "not taken": dict(campaign.refused),
    }  # fmt: skip
    outcome.faults += [f"lost: {job}: {reply}" for job, reply in lost.items()]
    outcome.faults += [f"another picture: {job}" for job in wrong]
    outcome.faults += [f"no webhook: {job}" for job in missing]
    if campaign.forged:
        outcome.faults.append(f"{campaign.forged} webhooks with a wrong signature or id")


async def _ask(http: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response | None:
    """Return a reply; None if there is none, as from a server that has just been killed."""
    try:
        return await http.request(method, url, **options)
    except httpx.HTTPError:
        return None


@asynccontextmanager
async def _receiver(campaign: _Campaign) -> AsyncIterator[str]:
    """Receive webhooks; yield the URL. Each fifth delivery is refused at first."""
    seen = Counter[str]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[1:]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head if line)}
            body = await reader.readexactly(int(headers["content-length"]))
            message = headers.get("webhook-id", "")
            seen[message] += 1
            is_refused = seen[message] == 1 and len(seen) % 5 == 0
            if not is_refused:
                campaign.receive(headers, body)
            status = b"503 Not Now" if is_refused else b"204 No Content"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    finally:
        server.close()


def _http() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=20)
