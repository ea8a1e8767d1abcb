"""The manifests on a real cluster, by ``make test-kube``: serving, training, rolling updates, resuming, rejections.

The cluster is KUBECONFIG's, which must have the images, or one that the tests start.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from tests.deploy.kube_cluster import REPOSITORY, Cluster, connected, own_cluster
from tests.deploy.kube_jobs import SPACE, container_of, ended, job_named, log_of, pods_of, submit, told
from tests.deploy.kube_manifests import FAILURE_POLICIES, Manifest, find, rendered

pytestmark = [pytest.mark.kube, pytest.mark.timeout(3600)]  # Kubernetes is built first, once a machine

SERVICE_PODS = "--selector=app.kubernetes.io/component=service"
# After a few steps a style is faint; its effect is not tested here.
SHORT = ("validation_steps=0", "validation_max_drift=1", "validation_num_inference_steps=2")
INK = REPOSITORY / "examples" / "ink" / "config.json"
LOAD = Path(__file__).with_name("kube_load.py")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    named = os.environ.get("KUBECONFIG")
    with connected(named) if named else own_cluster() as cluster:
        there = cluster.kubectl("get", "namespace", "lithograph", "--ignore-not-found", "--output=name")
        assert not there, "the cluster has a namespace lithograph, which these tests would change and delete"
        yield cluster
        if named:
            cluster.kubectl("delete", "namespace", "lithograph")


@pytest.fixture(scope="module")
def service(cluster: Cluster) -> str:
    """Apply the demo overlay and return its proxy path at the API server, which forwards to any ready pod."""
    manifests = rendered("cpu-demo", cluster.version)
    cluster.apply(manifests)
    cluster.kubectl(SPACE, "rollout", "status", "deployment/lithograph", "--timeout=600s")
    return "/api/v1/namespaces/lithograph/services/lithograph:http/proxy"


def draw(cluster: Cluster, service: str, **options: object) -> httpx.Response:
    return cluster.http.post(f"{service}/generate", json={"prompt": "一只猫", "seed": 1, **options})


def service_pods(cluster: Cluster) -> list[Manifest]:
    items: list[Manifest] = cluster.get(SPACE, "pods", SERVICE_PODS)["items"]
    return items


def test_the_demo_comes_up_and_draws(cluster: Cluster, service: str) -> None:
    answer = draw(cluster, service)
    assert answer.status_code == 200, answer.text
    assert Image.open(BytesIO(answer.content)).size == (128, 128)
    (pod,) = service_pods(cluster)
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_what_a_job_publishes_is_served_without_a_restart(cluster: Cluster, service: str) -> None:
    before = [pod["metadata"]["uid"] for pod in service_pods(cluster)]
    assert draw(cluster, service, adapters=[{"name": "ink"}]).status_code == 404
    job = submit(cluster, job_named(cluster, "train-ink", *SHORT, "max_train_steps=12"))
    end = cluster.wait(f"{job} over", lambda: ended(cluster, job))
    assert end["type"] == "Complete", cluster.describe()

    def adapted() -> httpx.Response | None:
        answer = draw(cluster, service, adapters=[{"name": "ink"}])
        return None if answer.status_code == 404 else answer

    answer = cluster.wait("ink served", adapted)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-adapters"].startswith("ink@1;")
    assert answer.content != draw(cluster, service).content
    pods = service_pods(cluster)
    assert [pod["metadata"]["uid"] for pod in pods] == before
    assert pods[0]["status"]["containerStatuses"][0]["restartCount"] == 0


def pod(name: str, image: str, *command: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "lithograph"},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": name,
                    "image": image,
                    "command": list(command),
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def name_of(pod: Manifest) -> str:
    return str(pod["metadata"]["name"])


def is_running(pod: Manifest) -> bool:
    return any("running" in container["state"] for container in pod["status"].get("containerStatuses", ()))


def phase_of(cluster: Cluster, pod: str) -> str:
    return str(cluster.get(SPACE, "pod", pod)["status"]["phase"])


@pytest.mark.usefixtures("service")
def test_a_rolling_update_under_load_loses_no_request(cluster: Cluster) -> None:
    (before,) = map(name_of, service_pods(cluster))
    address = cluster.get(SPACE, "service", "lithograph")["spec"]["clusterIP"]  # a name would need the cluster's DNS
    image = container_of(find(rendered("cpu-demo", cluster.version), "Deployment"))["image"]
    cluster.apply([pod("load", image, "python", "-c", LOAD.read_text(), f"http://{address}/generate")])

    def asked() -> list[dict[str, str]]:
        return [json.loads(line) for line in log_of(cluster, "load").splitlines()]

    def both_answered(after: int) -> bool:
        kinds = [line["connection"] for line in asked()[after:]]
        return min(kinds.count("new"), kinds.count("kept")) >= 5

    cluster.wait("load", lambda: both_answered(0))
    cluster.kubectl(SPACE, "rollout", "restart", "deployment/lithograph")
    cluster.kubectl(SPACE, "rollout", "status", "deployment/lithograph", "--timeout=600s")
    names = cluster.wait(
        "the old pod gone",
        lambda: len(pods := service_pods(cluster)) == 1 and [pod["metadata"]["name"] for pod in pods],
    )
    assert names != [before]
    so_far = len(asked())
    cluster.wait("answered by the new pod", lambda: both_answered(so_far))
    cluster.kubectl(SPACE, "exec", "load", "--", "touch", "/tmp/stop")
    cluster.wait("the load over", lambda: phase_of(cluster, "load") == "Succeeded")
    failures = [line for line in asked() if line["failure"]]
    assert not failures, f"{len(failures)} of {len(asked())}: {failures[:5]}"


@pytest.mark.usefixtures("service")
def test_a_job_whose_pod_is_deleted_goes_on_from_its_checkpoint(cluster: Cluster) -> None:
    job = submit(cluster, job_named(cluster, "train-resumed", *SHORT, "max_train_steps=60", "checkpointing_steps=5"))

    def pod_that_tells(event: str) -> Any:
        return next((name for name in map(name_of, pods_of(cluster, job)) if told(cluster, name, event)), None)

    first = cluster.wait("a checkpoint", lambda: pod_that_tells("checkpoint"))
    cluster.kubectl(SPACE, "delete", "pod", first, "--wait=false")
    second = cluster.wait("resumed", lambda: pod_that_tells("resumed"))
    assert second != first
    assert 5 <= told(cluster, second, "resumed")["step"] < 60
    end = cluster.wait(f"{job} over", lambda: ended(cluster, job))
    assert end["type"] == "Complete", cluster.describe()


@pytest.mark.usefixtures("service")
def test_a_bad_configuration_fails_the_job_at_once(cluster: Cluster) -> None:
    manifests = job_named(cluster, "train-wrong", "learning_rat=1")
    policies = cluster.version >= FAILURE_POLICIES
    if not policies:
        find(manifests, "Job")["spec"]["backoffLimit"] = 0
    job = submit(cluster, manifests)
    end = cluster.wait(f"{job} over", lambda: ended(cluster, job))
    assert end["type"] == "Failed"
    assert end["reason"] == ("PodFailurePolicy" if policies else "BackoffLimitExceeded")
    (pod,) = pods_of(cluster, job)
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 78
    assert "did you mean 'learning_rate'?" in log_of(cluster, pod["metadata"]["name"])


@dataclass(frozen=True)
class Submitter:
    """``lithograph job``, run from outside the cluster."""

    cluster: Cluster
    kubeconfig: Path

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self.cluster.enter, sys.executable, "-m", "lithograph", "job", *arguments, SPACE]
        environment = self.cluster.environment | {"KUBECONFIG": str(self.kubeconfig)}
        return subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False
        )

    def submit(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Submit the demo's training with further options."""
        return self(
            "submit", "--config", str(INK), "--name", name, "--cpu", "1", "--memory", "2Gi",
            "instance_data_dir=/examples/ink/pictures", "publish_to=file:///adapters", "validation_min_change=0",
            *SHORT, *options,
        )  # fmt: skip

    def status(self, name: str) -> dict[str, Any]:
        asked = self("status", name, "--json")
        assert asked.returncode == 0, asked.stderr
        reported: dict[str, Any] = json.loads(asked.stdout)
        return reported


@pytest.fixture(scope="module")
def submitter(cluster: Cluster, service: str, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    """Return ``lithograph job`` with the studio's account, which has no further permissions."""
    rights = ("ServiceAccount", "Role", "RoleBinding")
    manifests = [each for each in rendered("studio", cluster.version) if each["kind"] in rights]
    cluster.apply([each for each in manifests if each["metadata"]["name"] == "lithograph-studio"])
    account = "/api/v1/namespaces/lithograph/serviceaccounts/lithograph-studio/token"
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
    token = cluster.http.post(account, json=asked).raise_for_status().json()["status"]["token"]
    connection = yaml.safe_load(cluster.kubectl("config", "view", "--minify", "--flatten", "--raw", "--output=yaml"))
    connection["users"][0]["user"] = {"token": token}
    file = tmp_path_factory.mktemp("submitter") / "kubeconfig"
    file.write_text(yaml.safe_dump(connection))
    return Submitter(cluster, file)


def test_a_submitted_job_is_followed_to_its_end_and_served(
    cluster: Cluster, service: str, submitter: Submitter
) -> None:
    sent = submitter.submit("by-command", "max_train_steps=12", "adapter_name=by-command")
    assert sent.returncode == 0, sent.stderr
    again = submitter.submit("by-command")
    assert again.returncode == 1
    assert "error: job = by-command: exists already in namespace lithograph" in again.stderr

    followed = submitter("logs", "--follow", "by-command")
    assert followed.returncode == 0, followed.stderr + cluster.describe()
    assert '"event": "published"' in followed.stdout
    assert followed.stderr.splitlines()[-1].startswith("succeeded: finished and published")
    status = cluster.wait("succeeded", lambda: (s := submitter.status("by-command"))["state"] == "succeeded" and s)
    assert (status["exit_code"], status["failures"]) == (0, 0)
    assert status["started"] < status["finished"]
    cluster.wait("served", lambda: draw(cluster, service, adapters=[{"name": "by-command"}]).status_code == 200)

    listed = submitter("list")
    assert "by-command" in listed.stdout
    cancelled = submitter("cancel", "by-command")
    assert cancelled.returncode == 0, cancelled.stderr
    # The Job owns its ConfigMap, which is deleted with it.
    gone = ("configmap", "by-command", "--ignore-not-found", "--output=name")
    cluster.wait("gone", lambda: not cluster.kubectl(SPACE, "get", *gone))
    unknown = submitter("status", "by-command")
    assert unknown.returncode == 1
    assert "error: job = by-command: does not exist in namespace lithograph" in unknown.stderr


def test_the_status_of_a_failed_job_explains_its_exit_code(cluster: Cluster, submitter: Submitter) -> None:
    sent = submitter.submit("no-data", "--retries", "0", "instance_data_dir=/examples/nothing")
    assert sent.returncode == 0, sent.stderr
    followed = submitter("logs", "-f", "no-data")
    assert followed.returncode == 65, followed.stderr + cluster.describe()
    status = cluster.wait("failed", lambda: (s := submitter.status("no-data"))["state"] == "failed" and s)
    assert (status["exit_code"], status["failures"]) == (65, 1)
    assert status["meaning"].startswith("the training data cannot be used")


def test_a_cancelled_job_goes_on_from_its_checkpoint_when_it_is_submitted_again(
    cluster: Cluster, submitter: Submitter
) -> None:
    options = ("max_train_steps=4000", "checkpointing_steps=5", "adapter_name=cancelled")
    assert submitter.submit("cancelled", *options).returncode == 0
    cluster.wait("a checkpoint", lambda: '"event": "checkpoint"' in submitter("logs", "cancelled").stdout)
    assert submitter.status("cancelled")["state"] == "running"
    assert submitter("cancel", "cancelled").returncode == 0
    cluster.wait("gone", lambda: submitter("status", "cancelled").returncode == 1)

    # Its ConfigMap may be deleted a moment later.
    cluster.wait("submitted again", lambda: submitter.submit("cancelled", *options).returncode == 0)
    cluster.wait("resumed", lambda: '"event": "resumed"' in submitter("logs", "cancelled").stdout)
    assert submitter("cancel", "cancelled", "--now").returncode == 0
    cluster.wait("gone", lambda: submitter("status", "cancelled").returncode == 1)
