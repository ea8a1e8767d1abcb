"""A storage of jobs that does not answer, is gone for a while, or has half-written objects."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from longcat.errors import StorageConflictError, StorageError, StorageTimeoutError
from longcat.storage.files import FileStorage
from longcat.storage.interface import Storage
from service.http.jobs.lasting import store as store_module
from service.http.jobs.lasting.calls import StorageCalls
from service.wire.job import JobStatus
from tests.service.http.jobs.lasting.replicas import LEASE_SECONDS, Opener, Replica, found, succeed, until


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

            async def run(self: StorageCalls, kind: str, call: Callable[[], object], seconds: float) -> object:
                if is_down:
                    raise StorageTimeoutError("storage_timeout", "{uri} {seconds}", remedy="r", uri="u", seconds=1)
                return await real(self, kind, call, seconds)

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


def test_an_outage_is_logged_once_for_each_kind_of_call_and_its_end_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "jobs"
    calls = StorageCalls(lambda: FileStorage(folder))
    caplog.set_level(logging.INFO, logger="lithograph")

    def failed(kind: str) -> float:
        return REGISTRY.get_sample_value("lithograph_job_storage_errors_total", {"call": kind}) or 0.0

    async def check() -> None:
        await calls.create("a", lambda: b"a")
        before = failed("list"), failed("create")
        folder.rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(StorageError):
                await calls.list("")
        with pytest.raises(StorageError):
            await calls.create("b", lambda: b"b")
        (tmp_path / "away").rename(folder)
        with pytest.raises(StorageConflictError):  # is no failure of the storage
            await calls.create("a", lambda: b"a")
        assert await calls.list("a")
        assert (failed("list") - before[0], failed("create") - before[1]) == (2, 1)

    asyncio.run(check())
    events = [(vars(record)["event"], vars(record)["fields"]["call"]) for record in caplog.records]
    assert events == [
        ("job_storage_down", "list"), ("job_storage_down", "create"),
        ("job_storage_up", "create"), ("job_storage_up", "list"),
    ]  # fmt: skip
