"""Jobs of the studio with real trainings: queued, stopped, resumed, killed, failed, and found by a restarted studio."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from longcat.errors import DataError, UnknownJobError
from longcat.process.identity import started_after_boot
from studio.jobs.executor import LocalExecutor
from studio.jobs.job_view import JobView
from studio.jobs.queue import JobQueue, JobStateError
from studio.jobs.record import EXIT_FILE, Process, State, read_job, write_job
from tests.studio.boundaries import boundary
from trainer.config.options import TrainConfig
from trainer.record.run_file import read_metrics

SECONDS = 300


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, caption in enumerate(("a red square", "一个红方块")):
        Image.new("RGB", (128, 128), (200, 20 * number, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def config(pictures: Path, steps: int, **changes: object) -> TrainConfig:
    options = {
        "model_flavour": "embedded", "instance_data_dir": str(pictures), "resolution": 128, "max_train_steps": steps,
        "lora_rank": 2, "lora_dropout": 0, "validation_disable": True, "adapter_name": "red",
    }  # fmt: skip
    return TrainConfig.model_validate(options | changes)


@pytest.fixture
def open_jobs(tmp_path: Path) -> Iterator[Callable[[], JobQueue]]:
    """Return a function that opens queues of one home, one after the other; their processes are killed at the end."""
    opened: list[JobQueue] = []

    def open_them() -> JobQueue:
        for earlier in opened:
            earlier.close()
        executor = LocalExecutor(
            cache=tmp_path / "cache", adapters=(tmp_path / "adapters").as_uri(), boundary=boundary(tmp_path)
        )
        opened.append(JobQueue(tmp_path / "jobs", {"local": executor}))
        return opened[-1]

    yield open_them
    last = open_them()
    for view in last.list():
        last.stop(view.job.id, at_once=True)
    wait(last, lambda: all(view.state.is_over or view.state is State.QUEUED for view in last.list()))
    for jobs in opened:
        for view in jobs.list():
            wait(
                last,
                lambda view=view, jobs=jobs: (
                    not jobs.get(view.job.id).job.has_begun or jobs.get(view.job.id).state.is_over
                ),
            )
    last.close()


def wait(jobs: JobQueue, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not until():
        logs = "\n".join(f"{view.job.id} {view.state}\n{jobs.log_tail(view.job.id)}" for view in jobs.list())
        assert time.monotonic() < deadline, logs
        time.sleep(0.05)


def wait_for(jobs: JobQueue, identity: str, *states: State) -> JobView:
    wait(jobs, lambda: jobs.get(identity).state in states)
    return jobs.get(identity)


def wait_for_step(jobs: JobQueue, identity: str, step: int) -> None:
    def is_there() -> bool:
        run = jobs.get(identity).run
        return run is not None and run.step >= step

    wait(jobs, is_there)


def test_a_job_runs_and_is_published_and_the_next_waits_its_turn(
    open_jobs: Callable[[], JobQueue], pictures: Path, tmp_path: Path
) -> None:
    jobs = open_jobs()
    first = jobs.submit(config(pictures, 3), name="红色 red")
    second = jobs.submit(config(pictures, 3), name="later")
    assert [view.state for view in jobs.list()] == [State.QUEUED, State.QUEUED]
    jobs.tick()
    jobs.tick()
    assert jobs.get(first.id).state is State.RUNNING
    assert jobs.get(second.id).state is State.QUEUED
    with pytest.raises(JobStateError, match="stop it first"):
        jobs.delete(first.id)

    view = wait_for(jobs, first.id, State.FINISHED, State.FAILED)
    assert (view.state, view.exit_code, view.problems) == (State.FINISHED, 0, ()), jobs.log_tail(first.id)
    assert view.run is not None
    assert view.output is not None
    assert (view.run.published, view.share) == ("red@1", 1.0)
    assert [line.step for line in read_metrics(view.output)] == [1, 2, 3]
    assert (tmp_path / "adapters" / "red" / "1" / "manifest.json").exists()
    with pytest.raises(JobStateError, match="finished"):
        jobs.resume(first.id)

    jobs.stop(second.id)
    assert jobs.get(second.id).state is State.STOPPED
    jobs.tick()
    assert jobs.get(second.id).state is State.STOPPED
    jobs.delete(first.id)
    assert [view.job.id for view in jobs.list()] == [second.id]
    with pytest.raises(UnknownJobError):
        jobs.get(first.id)
    assert (tmp_path / "adapters" / "red" / "1" / "manifest.json").exists()


def test_a_job_outlives_the_studio_and_is_stopped_and_resumed_by_another(
    open_jobs: Callable[[], JobQueue], pictures: Path
) -> None:
    jobs = open_jobs()
    identity = jobs.submit(config(pictures, 100_000), name="long").id
    jobs.tick()
    wait_for_step(jobs, identity, 2)
    before = jobs.get(identity).job.process

    jobs = open_jobs()
    view = jobs.get(identity)
    assert (view.state, view.job.process) == (State.RUNNING, before)
    jobs.stop(identity)
    assert jobs.get(identity).state in (State.STOPPING, State.STOPPED)
    view = wait_for(jobs, identity, State.STOPPED)
    assert view.exit_code == 75
    assert view.run is not None
    stopped_at = view.run.step
    assert stopped_at >= 2

    options = jobs.config(identity)
    (view.folder / "config.json").write_text(json.dumps(options | {"max_train_steps": stopped_at + 2}))
    jobs.resume(identity)
    assert jobs.get(identity).state is State.QUEUED
    jobs.tick()
    view = wait_for(jobs, identity, State.FINISHED, State.FAILED)
    assert view.state is State.FINISHED, jobs.log_tail(identity)
    assert view.run is not None
    assert (view.run.start_step, view.run.step, view.job.tries) == (stopped_at, stopped_at + 2, 2)


def test_a_studio_that_ends_with_its_processes_has_trainings_saved_and_queued_again(
    open_jobs: Callable[[], JobQueue], pictures: Path
) -> None:
    jobs = open_jobs()
    identity = jobs.submit(config(pictures, 100_000), name="long").id
    later = jobs.submit(config(pictures, 3), name="later").id
    jobs.tick()
    wait_for_step(jobs, identity, 2)
    jobs.close()
    jobs.suspend()
    view = jobs.get(identity)
    assert (view.state, view.job.has_begun, jobs.get(later).state) == (State.QUEUED, False, State.QUEUED)
    assert view.output is not None
    assert [entry for entry in view.output.iterdir() if entry.name.startswith("checkpoint")]
    assert view.run is not None
    assert view.run.state == "preempted"


def test_a_job_that_is_killed_differs_from_one_that_failed(open_jobs: Callable[[], JobQueue], pictures: Path) -> None:
    jobs = open_jobs()
    identity = jobs.submit(config(pictures, 100_000), name="victim").id
    jobs.tick()
    wait_for_step(jobs, identity, 1)
    run, process = jobs.get(identity).run, jobs.get(identity).job.process
    assert run is not None
    assert process is not None
    os.kill(run.pid, signal.SIGKILL)  # as the kernel does when memory is short
    view = wait_for(jobs, identity, State.KILLED, State.FAILED)
    assert (view.state, view.exit_code) == (State.KILLED, 137)
    assert view.run is not None
    assert view.run.state == "running"  # it had no time to record its end

    jobs.resume(identity)
    jobs.tick()
    wait(jobs, lambda: (jobs.get(identity).run or run).pid != run.pid)
    again = jobs.get(identity).job.process
    assert again is not None
    os.killpg(again.pid, signal.SIGKILL)  # the whole session, so that no exit code is recorded
    view = wait_for(jobs, identity, State.KILLED, State.FAILED)
    assert (view.state, view.exit_code, view.state.can_resume) == (State.KILLED, None, True)


def test_a_job_whose_shell_is_killed_leaves_no_trainer_and_goes_on_from_what_it_saved(
    open_jobs: Callable[[], JobQueue], pictures: Path
) -> None:
    jobs = open_jobs()
    identity = jobs.submit(config(pictures, 100_000), name="alone").id
    jobs.tick()
    wait_for_step(jobs, identity, 1)
    process = jobs.get(identity).job.process
    assert process is not None
    shell = psutil.Process(process.pid)
    family = [shell, *shell.children(recursive=True)]
    assert len(family) > 1
    shell.kill()
    view = wait_for(jobs, identity, State.KILLED, State.FAILED)
    assert (view.state, view.exit_code, view.state.can_resume) == (State.KILLED, None, True)
    assert not psutil.wait_procs(family, timeout=SECONDS)[1]
    view = jobs.get(identity)
    assert view.run is not None
    assert (view.state, view.run.state) == (State.KILLED, "preempted"), jobs.log_tail(identity)


def test_a_failed_job_has_its_reason(open_jobs: Callable[[], JobQueue], tmp_path: Path) -> None:
    jobs = open_jobs()
    (tmp_path / "empty").mkdir()
    identity = jobs.submit(config(tmp_path / "empty", 1), name="nothing").id
    jobs.tick()
    view = wait_for(jobs, identity, State.FAILED, State.FINISHED)
    assert (view.state, view.exit_code) == (State.FAILED, 65)
    assert [problem.code for problem in view.problems] == ["no_pictures"]
    assert "error:" in jobs.log_tail(identity)


def test_another_process_of_the_same_number_is_not_the_job(open_jobs: Callable[[], JobQueue], pictures: Path) -> None:
    jobs = open_jobs()
    identity = jobs.submit(config(pictures, 1), name="gone").id
    folder = jobs.get(identity).folder
    mine = Process(pid=os.getpid(), started=started_after_boot(os.getpid()) - 60)
    job = read_job(folder).model_copy(update={"process": mine})
    write_job(folder, job)
    assert jobs.get(identity).state is State.KILLED
    jobs.stop(identity, at_once=True)  # and this process is not killed
    (folder / EXIT_FILE).write_text("75")
    assert jobs.get(identity).state is State.STOPPED


def test_a_job_that_cannot_be_read_hides_no_other(open_jobs: Callable[[], JobQueue], pictures: Path) -> None:
    jobs = open_jobs()
    torn, far, good = (jobs.submit(config(pictures, 1), name=name).id for name in ("torn", "far", "good"))
    record = jobs.get(torn).folder / "job.json"
    record.write_bytes(record.read_bytes()[:40])
    job = read_job(jobs.get(far).folder)
    write_job(
        jobs.get(far).folder, job.model_copy(update={"executor": "kubernetes", "remote": "here/far"})
    )  # no cluster now

    views = {view.job.id: view for view in jobs.list()}
    assert {name: view.state for name, view in views.items()} == {
        torn: State.FAILED, far: State.RUNNING, good: State.QUEUED
    }  # fmt: skip
    assert [problem.code for problem in views[torn].problems] == ["job_record_unreadable"]
    assert views[far].reason is not None
    assert views[far].reason.code == "executor_unknown"
    assert (jobs.log_tail(far), list(jobs.metrics(far, 0))) == ("", [])
    with pytest.raises(DataError, match="cannot be read"):
        jobs.resume(torn)
    jobs.tick()
    assert jobs.get(good).job.has_begun
    jobs.delete(torn)
    jobs.stop(good, at_once=True)
    wait_for(jobs, good, State.STOPPED)
    write_job(jobs.get(far).folder, job)


@pytest.mark.parametrize("identity", ["", "..", "../x", ".hidden", "a/b", "A"])
def test_an_id_is_no_path(open_jobs: Callable[[], JobQueue], identity: str) -> None:
    with pytest.raises(UnknownJobError):
        open_jobs().get(identity)
