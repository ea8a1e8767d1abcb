"""Two replicas' stores of jobs over one storage: who has a job, how it ended, and when it is removed."""

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from longcat.errors import StorageConflictError, UserError
from service.http.error_responses import status_of
from service.http.jobs.job import JobRequest
from service.http.jobs.lasting import store as store_module
from service.wire.errors import EngineEndedError
from service.wire.events import ErrorEvent, StepEvent
from service.wire.job import JobStatus
from tests.service.http.jobs.lasting.replicas import LEASE_SECONDS, Opener, Replica, found, succeed, until


def metric(name: str) -> float:
    value = REGISTRY.get_sample_value(name)
    assert value is not None
    return value


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
            await until(lambda: metric("lithograph_jobs_open") == 1)
            assert metric("lithograph_jobs_abandoned") == 1, "the foreign one, which no replica here takes"

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
            before = metric("lithograph_jobs_expired_total")
            await Replica(opener, kept_seconds=3600).store._retention.sweep({})
            assert sorted(await one.files.ids()) == sorted((young.id, open_.id))
            assert metric("lithograph_jobs_expired_total") - before == 2

    asyncio.run(check())


def test_what_is_no_id_names_no_job(opener: Opener) -> None:
    async def check() -> None:
        one = Replica(opener)
        for text in ("..", "../open", "x" * 5000, "", f"{uuid.uuid4()}\n", str(uuid.uuid4())):
            assert await one.store.get(text) is None

    asyncio.run(check())


def test_a_second_request_of_one_id_is_not_taken(opener: Opener) -> None:
    async def check() -> None:
        one = Replica(opener)
        job = await one.submit()
        with pytest.raises(StorageConflictError):
            await one.store.add(job)

    asyncio.run(check())
