"""Two replicas' stores of jobs over one storage: who has a job, how it ended, and when it is removed."""

import asyncio
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from longcat.errors import StorageConflictError, StorageError, StorageTimeoutError, UserError
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.storage.files import FileStorage
from longcat.storage.interface import Storage
from service.http.error_responses import status_of
from service.http.jobs.job import ImageJob, JobRequest
from service.http.jobs.lasting import store as store_module
from service.http.jobs.lasting.calls import StorageCalls
from service.http.jobs.lasting.files import JobFiles
from service.http.jobs.lasting.store import LastingJobs
from service.http.jobs.settings import JobConfig
from service.wire.errors import EngineEndedError
from service.wire.events import ErrorEvent, Picture, ResultEvent, StepEvent
from service.wire.job import JobStatus
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


def test_every_replica_answers_for_a_job_from_its_submission_to_its_removal(opener: Opener) -> None:
    async def check() -> None:
        async with Replica(opener) as one, Replica(opener) as two:
            job = await one.submit()
            seen = await found(two, job)
            assert (seen.status, seen.command.key) == (JobStatus.QUEUED, "team-a")
            assert seen.request == job.request.without_picture()
            assert 55 < seen.command.deadline - time.monotonic() <= 60, "the time limit begins anew"
            job.record(StepEvent(image=0, step=1, steps=4))
            async with asyncio.timeout(20):
                while (await found(two, job)).steps_made != 1:  # by a renewal
                    await asyncio.sleep(0.1)
            succeed(job)
            await one.store.end(job)
            await one.store.close(job)
            seen = await found(two, job)
            assert (seen.status, seen.finished_at, seen.steps_made) == (JobStatus.SUCCEEDED, job.finished_at, 1)
            result = await two.store.result(seen)
            assert result is not None
            assert result.images[0].content == b"picture"
            await two.store.remove(seen)
            assert await one.store.get(job.id) is None
            assert [entry.key for entry in opener().list()] == ["jobs-storage"]

    asyncio.run(check())


def test_a_job_of_a_replica_that_died_is_taken_once_and_not_before_its_lease_ends(opener: Opener) -> None:
    async def check() -> None:
        one = Replica(opener)
        async with Replica(opener) as two, Replica(opener) as three:
            await one.__aenter__()
            job = await one.submit()
            await asyncio.sleep(2 * LEASE_SECONDS)
            assert not two.taken + three.taken, "one renews its lease"
            await one.die()
            begin = time.monotonic()
            await until(lambda: two.taken or three.taken)
            assert time.monotonic() - begin > LEASE_SECONDS / 3
            await asyncio.sleep(LEASE_SECONDS)
            (taken,) = two.taken + three.taken
            assert (taken.request, taken.starts, taken.status) == (job.request, 2, JobStatus.QUEUED)

            # The first one was only stopped: what it does now changes nothing.
            succeed(taken, b"picture")
            await (two if two.taken else three).store.end(taken)
            succeed(job, b"picture of the first")
            await one.store.end(job)
            assert job.is_lost
            stored = await one.store.result(await found(one, job))
            assert stored is not None
            assert stored.images[0].content == b"picture"

    asyncio.run(check())


def test_a_job_that_ended_is_taken_for_its_webhook_and_one_of_another_model_is_not(opener: Opener) -> None:
    async def check() -> None:
        one = Replica(opener)
        async with Replica(opener) as two:
            await one.__aenter__()
            ended, foreign = await one.submit(), await one.submit(model={"hash": "other"})
            succeed(ended)
            await one.store.end(ended)
            await one.die()
            await until(lambda: two.taken)
            await asyncio.sleep(LEASE_SECONDS)
            (taken,) = two.taken
            assert (taken.id, taken.status, taken.starts) == (ended.id, JobStatus.SUCCEEDED, 1)
            await two.store.close(taken)
            assert [entry.key for entry in opener().list("open/")] == [f"open/{foreign.id}"]

    asyncio.run(check())


def test_a_cancelled_job_stops_on_its_replica_and_stays_cancelled(opener: Opener) -> None:
    async def check() -> None:
        async with Replica(opener) as one, Replica(opener) as two:
            job = await one.submit()
            await two.store.cancel(await found(two, job))
            assert (await found(one, job)).status is JobStatus.CANCELLED
            await until(job.cancelled.is_set)
            succeed(job)  # too late
            await one.store.end(job)
            assert (job.status, job.outcome, job.is_lost) == (JobStatus.CANCELLED, None, False)

    asyncio.run(check())


def test_an_error_is_the_same_on_every_replica_and_an_ended_engine_is_none(opener: Opener) -> None:
    async def check() -> None:
        async with Replica(opener) as one, Replica(opener) as two:
            job = await one.submit()
            job.record(ErrorEvent(EngineEndedError()))
            assert one.store.repeats(job)
            job.begin_again()
            error = UserError("blank", "blank", remedy="give some text", field="prompt", value="猫")
            job.record(ErrorEvent(error))
            assert not one.store.repeats(job)
            job.finish()
            await one.store.end(job)
            outcome = (await found(two, job)).outcome
            assert isinstance(outcome, ErrorEvent)
            assert (str(outcome.error), outcome.error.code, status_of(outcome.error)) == (
                str(error), "invalid_request", 422,
            )  # fmt: skip

    asyncio.run(check())


def test_a_job_that_ends_every_server_fails_in_the_end(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_MOST_STARTS", 1)

    async def check() -> None:
        one = Replica(opener)
        async with Replica(opener) as two:
            await one.__aenter__()
            job = await one.submit()
            await one.die()
            await until(lambda: two.taken)
            outcome = (await found(two, job)).outcome
            assert isinstance(outcome, ErrorEvent)
            assert (outcome.error.problems[0].code, status_of(outcome.error)) == ("job_started_too_often", 503)
            assert two.taken[0].status is JobStatus.FAILED

    asyncio.run(check())


def test_expired_jobs_are_removed_and_those_with_work_left_are_not(opener: Opener) -> None:
    async def check() -> None:
        one = Replica(opener, kept_seconds=3600)
        async with one:
            expired, young, open_ = [await one.submit() for _ in range(3)]
            for job in (expired, young):
                succeed(job)
            assert expired.finished_at is not None
            expired.finished_at -= timedelta(hours=2)
            for job in (expired, young):
                await one.store.end(job)
                await one.store.close(job)
            never = JobRequest.of(young.command, replies_with_json=False)
            never = never.model_copy(update={"created_at": datetime.now(UTC) - timedelta(hours=2)})
            await one.files.calls.create("requests/never", lambda: never.model_dump_json().encode())
            await Replica(opener, kept_seconds=3600).store._retention.sweep({})
            assert sorted(await one.files.ids()) == sorted((young.id, open_.id))

    asyncio.run(check())


def test_what_is_no_id_names_no_job(opener: Opener) -> None:
    async def check() -> None:
        one = Replica(opener)
        for text in ("..", "../open", "x" * 5000, "", f"{uuid.uuid4()}\n", str(uuid.uuid4())):
            assert await one.store.get(text) is None

    asyncio.run(check())


class Silent(Storage):
    """A storage on a mount that does not answer: a fake, because the real one is a dead NFS server."""

    uri = "file:///silent"

    def __init__(self) -> None:
        self.calls = 0

    def _wait(self, *_: object, **__: object) -> Any:
        self.calls += 1
        time.sleep(1.5)

    probe: Any = _wait
    find: Any = _wait
    list: Any = _wait
    read: Any = _wait
    download: Any = _wait
    replace: Any = _wait
    delete: Any = _wait

    def create(self, key: str, content: bytes | Path) -> str:
        return ""


@pytest.mark.parametrize("damage", [b"", b'{"owner": "'])
def test_objects_that_a_killed_writer_left_half_written_lose_no_job(opener: Opener, damage: bytes) -> None:
    def break_(key: str) -> None:
        storage = opener()
        storage.replace(key, damage, etag=storage.read(key).etag)

    async def check() -> None:
        one = Replica(opener)
        async with Replica(opener) as two:
            await one.__aenter__()
            kept, taken = await one.submit(), await one.submit()
            break_(f"open/{kept.id}")
            await one.store._renew(kept.id)
            assert not kept.is_lost
            await one.die()
            break_(f"open/{taken.id}")
            opener().create(f"ended/{taken.id}", damage)
            assert (await found(two, taken)).status is JobStatus.QUEUED
            await until(lambda: len(two.taken) == 2)
            (again,) = (job for job in two.taken if job.id == taken.id)
            succeed(again)
            await two.store.end(again)
            ended = await found(two, taken)
            result = await two.store.result(ended)
            assert ended.status is JobStatus.SUCCEEDED
            assert result is not None
            assert result.images[0].content == b"picture"

            break_(f"requests/{kept.id}")  # one that was never accepted
            assert await Replica(opener).store.get(kept.id) is None

    asyncio.run(check())


def test_calls_have_deadlines_and_threads_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = Silent()
    monkeypatch.setattr("service.http.jobs.lasting.calls._SECONDS", 0.2)

    async def check() -> None:
        calls = StorageCalls(lambda: silent)
        begin = time.monotonic()
        replies = await asyncio.gather(*(calls.delete("a") for _ in range(100)), return_exceptions=True)
        assert time.monotonic() - begin < 1
        assert all(isinstance(reply, StorageTimeoutError) for reply in replies)
        assert silent.calls == 16
        await asyncio.sleep(2)
        with pytest.raises(StorageTimeoutError):  # the threads have ended: there are calls again
            await calls.delete("a")
        assert silent.calls == 17

    asyncio.run(check())


def test_an_outage_ends_no_job(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_RETRY_SECONDS", 0.1)

    async def check() -> None:
        async with Replica(opener) as one:
            job = await one.submit()
            succeed(job)
            is_down = True
            real = StorageCalls._run

            async def run(self: StorageCalls, call: Callable[[], object], seconds: float) -> object:
                if is_down:
                    raise StorageTimeoutError("storage_timeout", "{uri} {seconds}", remedy="r", uri="u", seconds=1)
                return await real(self, call, seconds)

            monkeypatch.setattr(StorageCalls, "_run", run)
            ending = asyncio.create_task(one.store.end(job))
            await asyncio.sleep(0.5)
            assert not ending.done()
            assert (await found(one, job)).status is JobStatus.RUNNING, (
                "its end is not stored, and its pictures are not"
            )
            is_down = False
            await ending
            assert (await found(one, job)).status is JobStatus.SUCCEEDED
            is_down = True  # before its lease is removed: what clients have seen stands
            assert (await found(one, job)).status is JobStatus.SUCCEEDED

    asyncio.run(check())


def test_a_directory_that_is_gone_is_an_outage_and_no_job_is_lost(tmp_path: Path) -> None:
    folder, away = tmp_path / "jobs", tmp_path / "away"

    async def check() -> None:
        async with Replica(lambda: FileStorage(folder)) as one, Replica(lambda: FileStorage(folder)) as two:
            job = await one.submit()
            assert await two.store.get(job.id) is not None
            for is_mount_point in (False, True):
                folder.rename(away)
                if is_mount_point:
                    folder.mkdir()
                with pytest.raises(StorageError, match="emptied, moved or unmounted"):
                    await two.store.get(job.id)
                with pytest.raises(StorageError, match="emptied, moved or unmounted"):
                    await two.submit()
                await asyncio.sleep(LEASE_SECONDS)  # renewals fail
                assert not folder.exists() or not list(folder.iterdir())
                if is_mount_point:
                    folder.rmdir()
                away.rename(folder)
            assert not job.is_lost
            succeed(job)
            await one.store.end(job)
            assert (await found(two, job)).status is JobStatus.SUCCEEDED

    asyncio.run(check())


def test_a_second_request_of_one_id_is_not_taken(opener: Opener) -> None:
    async def check() -> None:
        one = Replica(opener)
        job = await one.submit()
        with pytest.raises(StorageConflictError):
            await one.store.add(job)

    asyncio.run(check())
