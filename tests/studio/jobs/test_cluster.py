"""Jobs on a cluster, on the same pages as local ones, against an API server that stores objects and runs nothing."""

import html
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from starlette.testclient import TestClient

from lithograph.kubernetes.connection import connect
from lithograph.kubernetes.job_status import ClusterJob
from longcat.errors import ConfigError, JobError
from studio.app import create_app
from studio.config import StudioConfig
from studio.jobs import cluster_executor
from studio.jobs.cluster_executor import ClusterExecutor
from studio.jobs.cluster_settings import ClusterSettings, read_cluster_settings
from studio.jobs.executor import LocalExecutor
from studio.jobs.queue import JobQueue
from studio.jobs.record import State
from tests.conftest import free_port, run_lithograph
from tests.lithograph.kubernetes.test_job import kubeconfig
from tests.studio.boundaries import boundary
from tests.studio.context import studio_of
from tests.studio.jobs.cluster_api import NOW, Api
from trainer.config.options import TrainConfig
from trainer.record.run_file import MetricsLine, RunRecord, write_run


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    kept = Api()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, reply = kept.answer(self.command, self.path, body)
            content = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(reply, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        yield kept
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(api: Api, tmp_path: Path) -> ClusterSettings:
    return ClusterSettings(
        kubeconfig=str(tmp_path / "kubeconfig"), image="trainer:1", data_claim="pictures", data_dir=tmp_path / "data"
    )


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


def test_whoever_follows_a_log_hears_why_there_is_none_yet(
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


WAITS: list[tuple[dict[str, Any], str]] = [
    ({"reason": "ErrImagePull", "message": "denied"}, "无法拉取镜像（ErrImagePull: denied）；请检查镜像名称"),
    ({"reason": "CreateContainerConfigError", "message": "not found"}, "所用的 Secret 或 ConfigMap 不存在或有误"),
    ({"reason": "ContainerCreating"}, "Pod 正在启动（ContainerCreating）"),
    ({"reason": "SomethingNew"}, "Pod 正在等待（SomethingNew）"),
]
ENDS: list[tuple[str, dict[str, Any], str]] = [
    ("DeadlineExceeded", {"exitCode": 143}, "已超过任务的时限"),
    ("BackoffLimitExceeded", {"exitCode": 1}, "所有重试均已失败"),
    ("PodFailurePolicy", {"exitCode": 78}, "重试也会失败（it is）"),
    ("SomethingNew", {"exitCode": 1}, "集群已终止该任务（SomethingNew: it is）"),
    ("BackoffLimitExceeded", {"exitCode": 137, "reason": "OOMKilled"}, "内存用量超过上限，已被终止；请调大任务的内存"),
]


@pytest.fixture
def page(api: Api, settings: ClusterSettings, tmp_path: Path) -> Iterator[TestClient]:
    app = create_app(StudioConfig(home=tmp_path / "home", cluster=settings))
    with TestClient(app, base_url="http://127.0.0.1:8001", headers={"Accept-Language": "zh"}) as visitor:
        yield visitor


def submitted(visitor: TestClient, tmp_path: Path) -> tuple[JobQueue, str]:
    jobs = studio_of(visitor).training.jobs
    identity = jobs.submit(config(tmp_path), name="cats", executor="kubernetes").id
    jobs.tick()
    return jobs, identity


@pytest.mark.parametrize(("waiting", "text"), WAITS)
def test_a_waiting_job_says_in_chinese_what_it_waits_for(
    page: TestClient, api: Api, tmp_path: Path, waiting: dict[str, Any], text: str
) -> None:
    _, identity = submitted(page, tmp_path)
    api.pod(identity, "Pending", waiting=waiting)
    assert text in html.unescape(page.get(f"/jobs/{identity}").text)


@pytest.mark.parametrize(
    ("suspended", "text"), [(True, "已挂起：所属队列尚未准入"), (False, "没有节点能满足所申请的资源或卷")]
)
def test_a_job_without_a_container_says_in_chinese_what_it_waits_for(
    page: TestClient, api: Api, tmp_path: Path, suspended: bool, text: str
) -> None:
    _, identity = submitted(page, tmp_path)
    api.pod(identity, "Pending")
    api.pods[0]["status"] = {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
        ],
    }
    api.jobs[identity]["spec"]["suspend"] = suspended
    assert text in page.get(f"/jobs/{identity}").text


@pytest.mark.parametrize(("reason", "terminated", "text"), ENDS)
def test_a_failed_job_says_in_chinese_why(
    page: TestClient, api: Api, tmp_path: Path, reason: str, terminated: dict[str, Any], text: str
) -> None:
    jobs, identity = submitted(page, tmp_path)
    api.pod(identity, "Failed", terminated=terminated)
    api.end(identity, "Failed", reason=reason)
    assert text in page.get(f"/jobs/{identity}").text
    api.jobs.clear()  # the cluster removes it: the stored status has the same problem
    assert text in page.get(f"/jobs/{identity}").text
    assert jobs.get(identity).exit_code == terminated["exitCode"]


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


def test_a_cluster_that_is_away_changes_nothing_but_what_is_said(jobs: JobQueue, tmp_path: Path) -> None:
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


def test_the_page_offers_the_cluster_and_says_beside_the_field_what_it_lacks(
    api: Api, settings: ClusterSettings, tmp_path: Path
) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(settings.model_dump_json(exclude_none=True, exclude_defaults=True))
    app = create_app(StudioConfig(home=tmp_path / "home", cluster=read_cluster_settings(str(file))))
    visitor = TestClient(app, base_url="http://127.0.0.1:8001", follow_redirects=False)
    assert "On Kubernetes" in visitor.get("/train").text
    form = {"model_flavour": "embedded", "resolution": "128", "adapter_name": "cats", "executor": "kubernetes"}
    page = visitor.post("/train", data=form | {"instance_data_dir": "/home/me/cats"})
    assert page.status_code == 422
    assert re.search(r'id="problem-instance_data_dir">[^<]+; give', page.text), page.text
    reply = visitor.post("/train", data=form | {"instance_data_dir": "s3://bucket/cats"})
    assert reply.status_code == 303
    app.state.studio.training.jobs.tick()
    assert len(api.jobs) == 1
    assert "Kubernetes" in visitor.get("/jobs").text
    app.state.studio.training.close()


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
