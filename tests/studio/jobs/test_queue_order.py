"""The order of the queue, the log in words and the gauges, without a training."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longcat.problem import Problem
from studio.jobs.gauges import GaugeReader, parse_gpu
from studio.jobs.log_words import log_entries
from studio.jobs.queue import JobQueue
from tests.studio.jobs.test_jobs import config
from trainer.record.prompts_file import ChangedPrompts


class Nowhere:
    """A place where nothing is started."""

    def options(self, config: object, folder: Path) -> dict[str, object]:
        return {}

    def output(self, job: object, folder: Path) -> Path:
        return folder / "output"


def test_waiting_jobs_change_places_and_keep_them(tmp_path: Path) -> None:
    jobs = JobQueue(tmp_path / "jobs", {"local": Nowhere()})  # type: ignore[dict-item]
    names = [jobs.submit(config(tmp_path, 1), name=name).id for name in ("a", "b", "c")]
    a, b, c = names
    jobs.move(c, places=-1)
    assert [view.job.id for view in jobs.waiting()] == [a, c, b]
    jobs.move(a, places=2)
    jobs.move(a, places=1)  # the last stays the last
    reopened = JobQueue(tmp_path / "jobs", {"local": Nowhere()})  # type: ignore[dict-item]
    assert [view.job.id for view in reopened.waiting()] == [c, b, a]
    jobs.stop(b)
    jobs.move(b, places=-1)
    assert [view.job.id for view in jobs.waiting()] == [c, a]


def test_changed_prompts_stand_for_the_configured_ones(tmp_path: Path) -> None:
    jobs = JobQueue(tmp_path / "jobs", {"local": Nowhere()})  # type: ignore[dict-item]
    job = jobs.submit(config(tmp_path, 1), name="a").id
    jobs.change_prompts(job, ChangedPrompts(prompts=("一只猫", "a dog")))
    assert jobs.prompts(job) == ("一只猫", "a dog")


def test_a_log_shows_its_events_and_the_latest_progress_once() -> None:
    problem = Problem(code="blank", template="blank", field="prompt")
    lines = [
        {"event": "started", "total_steps": 9, "time": "2026-11-27T01:00:00Z"},
        {"event": "phase", "name": "training"},
        *({"event": "step", "step": step, "total_steps": 9, "smoothed_loss": 0.25 * step} for step in (1, 2)),
        {"event": "warning", "note": "…", "problems": [problem.to_json()]},
        {"event": "validation", "step": 9, "passed": False, "images": 2},
        {"event": "of another version"},
        {"event": "step"},
    ]
    told = log_entries("\n".join(["a library's line", *map(json.dumps, lines)]))
    assert [entry.key for entry in told] == ["started", "phase", "step", "warning", "validation_failed"]
    assert told[2].values == {"step": "2", "total_steps": "9", "smoothed_loss": "0.5"}
    assert [found.code for found in told[3].problems] == ["blank"]


def test_the_load_of_the_cpu_is_measured_in_each_thread() -> None:
    reader = GaugeReader()
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    busy = threading.Thread(target=spin)
    busy.start()
    try:
        with ThreadPoolExecutor(1) as threads:
            gauges = threads.submit(reader.read).result()
    finally:
        stop.set()
        busy.join()
    assert gauges.kind == "cpu"
    assert gauges.busy > 0


def test_gauges_are_of_the_gpu_where_there_is_one() -> None:
    gauges = parse_gpu("37, 1024, 24576\n12, 1, 2\n")
    assert (gauges.busy, gauges.used_bytes, gauges.total_bytes) == (0.37, 2**30, 24 * 2**30)
    with pytest.raises(ValueError, match="could not convert"):
        parse_gpu("[N/A], 1, 2")
    here = GaugeReader().read()
    assert 0 < here.used_bytes < here.total_bytes
