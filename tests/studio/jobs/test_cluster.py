"""Jobs on a cluster, on the same pages as local ones, against an API server that stores objects and runs nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lithograph.kubernetes.connection import connect
from lithograph.kubernetes.job_status import ClusterJob
from longcat.errors import ConfigError, JobError
from studio.jobs import cluster_executor
from studio.jobs.cluster_executor import ClusterExecutor
from studio.jobs.cluster_settings import ClusterSettings, read_cluster_settings
from studio.jobs.executor import LocalExecutor
from studio.jobs.queue import JobQueue
from studio.jobs.record import State
from tests.conftest import free_port, run_lithograph
from tests.lithograph.kubernetes.test_job import kubeconfig
from tests.studio.boundaries import boundary
from tests.studio.jobs.cluster_api import NOW, Api
from trainer.config.options import TrainConfig
from trainer.record.run_file import MetricsLine, RunRecord, write_run


@pytest.fixture
def jobs(settings: ClusterSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobQueue]:
    monkeypatch.setattr(cluster_executor, "_KEPT_SECONDS", 0.0)
    local = LocalExecutor(cache=tmp_path / "cache", adapters="file:///adapters", boundary=boundary(tmp_path))
    opened = JobQueue(tmp_path / "jobs", {"local": local, "kubernetes": ClusterExecutor(settings)})
    yield opened
    opened.close()


def config(tmp_path: Path, **changes: Any) -> TrainConfig:
    options = {
        "model_flavour": "embedded",
        "instance_data_dir": str(tmp_path / "data" / "cats"),
        "adapter_name": "cats",
    }
    return TrainConfig.model_validate(options | {"resolution": 128} | changes)


def line(event: str, **fields: Any) -> str:
    return json.dumps({"time": NOW, "level": "INFO", "logger": "lithograph.trainer", "event": event, **fields})


STEP = {
    "step": 7, "total_steps": 20, "loss": 0.25, "smoothed_loss": 0.3, "learning_rate": 1e-4, "gradient_norm": 1.0,
    "step_seconds": 0.5, "images_per_second": 2.0, "eta_seconds": 6.5,
}  # fmt: skip


def test_a_job_goes_to_the_cluster_and_its_curve_comes_from_its_log(jobs: JobQueue, api: Api, tmp_path: Path) -> None:
    identity = jobs.submit(config(tmp_path), name="cats", executor="kubernetes").id
    assert jobs.get(identity).state is State.QUEUED
    jobs.tick()
    assert list(api.jobs) == [identity]
    assert api.configs[0]["instance_data_dir"] == "/data/cats"
    assert api.configs[0]["publish_to"] == "file:///adapters"
    api.pod(identity, "Pending", waiting={"reason": "ImagePullBackOff"})
    view = jobs.get(identity)
    assert view.reason is not None
    assert (view.state, view.reason.code, view.reason.details) == (
        State.QUEUED, "pod_image_unavailable", {"cause": "ImagePullBackOff"}
    )  # fmt: skip
    assert view.job.remote == f"training/{identity}"

    api.pod(identity, "Running", running={})
    api.log = "\n".join(["torch says something", line("started", run_id="r", total_steps=20), line("step", **STEP)])
    view = jobs.get(identity)
    assert view.state is State.RUNNING
    assert view.run is not None
    assert (view.run.step, view.run.eta_seconds, view.share) == (7, 6.5, 7 / 20)
    assert [kept.loss for kept in jobs.metrics(identity, 0)] == [0.25]
    assert jobs.metrics(identity, 7) == []
    assert "torch says something" in jobs.log_tail(identity)

    api.log += "\n" + line("published", adapter="cats@3") + "\n" + line("finished", exit_code=0)
    api.pod(identity, "Succeeded", terminated={"exitCode": 0})
    api.end(identity, "Complete")
    view = jobs.get(identity)
    assert view.run is not None
    assert (view.state, view.exit_code, view.run.published) == (State.FINISHED, 0, "cats@3")
    api.jobs.clear()  # the cluster removes it after a week; its stored status stays
    assert jobs.get(identity).state is State.FINISHED
    assert "cats@3" in jobs.log_tail(identity)


def test_a_job_on_the_cluster_is_stopped_resumed_and_deleted(jobs: JobQueue, api: Api, tmp_path: Path) -> None:
    identity = jobs.submit(config(tmp_path), name="cats", executor="kubernetes").id
    jobs.tick()
    api.pod(identity, "Running", running={})
    jobs.stop(identity)
    assert api.jobs == {}
    assert jobs.get(identity).state is State.STOPPED
    jobs.resume(identity)
    jobs.tick()
    assert list(api.jobs) == [identity]
    api.pod(identity, "Failed", terminated={"exitCode": 65})
    api.end(identity, "Failed")
    view = jobs.get(identity)
    assert (view.state, view.exit_code, [*map(str, view.problems)]) == (
        State.FAILED, 65, ["the cluster ended it (Because: it is)"]
    )  # fmt: skip
    jobs.resume(identity)
    jobs.tick()  # the failed one is removed first
    assert jobs.get(identity).state is State.QUEUED
    jobs.tick()
    assert jobs.get(identity).job.tries == 3
    jobs.stop(identity)
    jobs.delete(identity)
    assert jobs.list() == []


def test_following_a_log_shows_why_there_is_none_yet(
    api: Api, settings: ClusterSettings, jobs: JobQueue, tmp_path: Path
) -> None:
    identity = jobs.submit(config(tmp_path), name="cats", executor="kubernetes").id
    jobs.tick()
    api.pod(identity, "Pending", waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    done = run_lithograph("job", "logs", identity, "--kubeconfig", str(settings.kubeconfig), cwd=tmp_path)
    waits = (
        "the image cannot be pulled (ImagePullBackOff: no such image); "
        "check its name, and the cluster's access to the registry"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"queued: {waits}\n")

    reported: list[str] = []

    def report(status: ClusterJob) -> None:
        reported.append(str(status.message))
        api.pod(identity, "Succeeded", terminated={"exitCode": 0})
        api.log = "one line\n"
        api.end(identity, "Complete")

    cluster = connect(kubeconfig=settings.kubeconfig)
    assert list(cluster.logs(identity, follow=True, on_wait=report)) == ["one line"]
    assert reported == [waits]


def test_what_the_volume_shows_counts_over_the_log(
    api: Api, settings: ClusterSettings, jobs: JobQueue, tmp_path: Path
) -> None:
    volume = tmp_path / "training"
    jobs._executors["kubernetes"] = ClusterExecutor(settings.model_copy(update={"training_dir": volume}))
    identity = jobs.submit(config(tmp_path), name="cats", executor="kubernetes").id
    jobs.tick()
    api.pod(identity, "Running", running={})
    (volume / identity).mkdir(parents=True)
    record = RunRecord.model_validate(
        {"run_id": "r", "pid": 1, "hostname": "pod", "started": NOW, "updated": NOW, "code_version": "1", "total_steps": 20,
         "step": 9, "config": {}}
    )  # fmt: skip
    write_run(volume / identity, record, durable=False)
    step = MetricsLine.model_validate(dict.fromkeys(MetricsLine.model_fields, 1))
    (volume / identity / "metrics.jsonl").write_text(step.model_dump_json() + "\n")
    view = jobs.get(identity)
    assert view.run == record
    assert view.output == volume / identity
    assert jobs.metrics(identity, 0) == [step]


def test_what_the_pod_cannot_see_is_refused_at_once(jobs: JobQueue, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="instance_data_dir"):
        jobs.submit(config(tmp_path, instance_data_dir="/home/me/cats"), name="cats", executor="kubernetes")
    with pytest.raises(JobError, match="data_claim"):
        ClusterExecutor(ClusterSettings()).options(config(tmp_path, instance_data_dir="/data/cats"), tmp_path / "x")
    assert jobs.list() == []


def test_an_unreachable_cluster_changes_only_the_message(jobs: JobQueue, tmp_path: Path) -> None:
    identity = jobs.submit(config(tmp_path), name="cats", executor="kubernetes").id
    jobs.tick()
    kubeconfig(tmp_path, f"http://127.0.0.1:{free_port()}")
    jobs._executors["kubernetes"] = ClusterExecutor(ClusterSettings(kubeconfig=str(tmp_path / "kubeconfig")))
    view = jobs.get(identity)
    assert view.state is State.RUNNING
    assert view.reason is not None
    assert "cannot be reached" in str(view.reason)
    waiting = jobs.submit(
        config(tmp_path, instance_data_dir="s3://bucket/cats"), name="later", executor="kubernetes"
    ).id
    jobs.tick()
    view = jobs.get(waiting)
    assert (view.state, view.state.can_resume) == (State.FAILED, True)
    assert "cannot be reached" in str(view.problems[0])


def test_a_wrong_file_is_refused_by_field(tmp_path: Path) -> None:
    file = tmp_path / "cluster.json"
    assert read_cluster_settings('{"gpus": 1}').gpus == 1
    for text, named in (
        ('{"imgae": "x"}', "imgae"),
        ('{"gpus": "many"}', "gpus"),
        ('{"memory": "4 gigabytes"}', "memory"),
        ("[]", "not a JSON object"),
        ("{", "JSON"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=named):
            read_cluster_settings(str(file))
