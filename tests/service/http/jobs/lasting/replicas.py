"""Replicas for tests: stores of jobs over one storage, without their servers."""

import asyncio
import time
import uuid
from collections.abc import Callable

from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.storage.interface import Storage
from service.http.jobs.job import ImageJob, JobRequest
from service.http.jobs.lasting.calls import StorageCalls
from service.http.jobs.lasting.files import JobFiles
from service.http.jobs.lasting.store import LastingJobs
from service.http.jobs.settings import JobConfig
from service.wire.events import Picture, ResultEvent
from service.wire.messages import GenerateCommand
from service.wire.schema import AdapterChoice, ResolvedRequest, Timings

MODEL: dict[str, object] = {"hash": "abc", "device": "cpu", "provenance": {"picture_label": "on"}}
LEASE_SECONDS = 2.0
Opener = Callable[[], Storage]


class Replica:
    """The store of one replica, and the jobs that it has taken from others."""

    def __init__(self, opener: Opener, *, model: dict[str, object] | None = None, kept_seconds: float = 3600) -> None:
        config = JobConfig(storage="file:///unused", lease_seconds=LEASE_SECONDS, ttl_seconds=kept_seconds)
        self.files = JobFiles(StorageCalls(opener))
        self.store = LastingJobs(self.files, config, lambda: MODEL if model is None else model)
        self.taken: list[ImageJob] = []
        self.has_room = True
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Replica":
        self._work = asyncio.create_task(self.store.run(self.taken.append, has_room=lambda: self.has_room))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def die(self) -> None:
        """End as by SIGKILL: nothing more is renewed."""
        assert self._work is not None
        self._work.cancel()
        await asyncio.wait([self._work])

    async def submit(self, **fields: object) -> ImageJob:
        now = time.monotonic()
        request = ResolvedRequest(
            prompt="a cat", negative_prompt="", width=64, height=64, steps=4, guidance_scale=4.0, seed=3, num_images=1,
            cfg_renorm=True, rewrite_prompt=False, output_format="png", adapters=(AdapterChoice(name="ink@3", scale=0.5),),
        )  # fmt: skip
        picture = SourcePicture(width_px=64, height_px=64, pixels=bytes(range(256)) * 48, manifest=bytes(range(256)))
        command = GenerateCommand(
            id=str(uuid.uuid4()), request_id="r", request=request, picture=picture, submitted_at=now, deadline=now + 60,
            key="team-a",
        )  # fmt: skip
        fields = {"replies_with_json": False, "model": MODEL, "webhook_url": "http://hooks/x"} | fields
        job = ImageJob(request=JobRequest.of(command, **fields), command=command)
        await self.store.add(job)
        return job


def succeed(job: ImageJob, content: bytes = b"picture") -> None:
    timings = Timings(text_seconds=0, denoise_seconds=0, decode_seconds=0, encode_seconds=0)
    job.record(
        ResultEvent(
            request_id="r", model_hash="abc", prompt="a cat", request=job.command.request, adapters=(), timings=timings,
            media_type="image/png", images=(Picture(seed=3, content=content),),
        )
    )  # fmt: skip
    job.finish()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.05)


async def found(replica: Replica, job: ImageJob) -> ImageJob:
    seen = await replica.store.get(job.id)
    assert seen is not None
    return seen
