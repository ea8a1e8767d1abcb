"""The pages of jobs on a cluster."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from studio.app import create_app
from studio.config import StudioConfig
from studio.jobs.cluster_settings import ClusterSettings, read_cluster_settings
from studio.jobs.queue import JobQueue
from tests.studio.context import studio_of
from tests.studio.jobs.cluster_api import Api
from tests.studio.jobs.test_cluster import config

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
def test_the_page_of_a_waiting_job_has_the_reason_in_chinese(
    page: TestClient, api: Api, tmp_path: Path, waiting: dict[str, Any], text: str
) -> None:
    _, identity = submitted(page, tmp_path)
    api.pod(identity, "Pending", waiting=waiting)
    assert text in html.unescape(page.get(f"/jobs/{identity}").text)


@pytest.mark.parametrize(
    ("suspended", "text"), [(True, "已挂起：所属队列尚未准入"), (False, "没有节点能满足所申请的资源或卷")]
)
def test_the_page_of_a_job_without_a_container_has_the_reason_in_chinese(
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
def test_the_page_of_a_failed_job_has_the_reason_in_chinese(
    page: TestClient, api: Api, tmp_path: Path, reason: str, terminated: dict[str, Any], text: str
) -> None:
    jobs, identity = submitted(page, tmp_path)
    api.pod(identity, "Failed", terminated=terminated)
    api.end(identity, "Failed", reason=reason)
    assert text in page.get(f"/jobs/{identity}").text
    api.jobs.clear()  # the cluster removes it: the stored status has the same problem
    assert text in page.get(f"/jobs/{identity}").text
    assert jobs.get(identity).exit_code == terminated["exitCode"]


def test_the_page_offers_the_cluster_and_shows_problems_beside_their_fields(
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
