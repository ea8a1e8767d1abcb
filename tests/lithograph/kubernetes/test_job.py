"""``lithograph job``: the objects sent to a cluster, and rejections. For a real cluster, see tests/deploy/test_kube.py."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lithograph.kubernetes.connection import connect
from lithograph.kubernetes.job_settings import JobSettings
from lithograph.kubernetes.job_status import meaning_of
from lithograph.kubernetes.training_job import TrainingJob, template
from longcat.errors import ClusterError, ConfigError, JobError
from tests import ROOT
from tests.conftest import free_port, run_lithograph
from trainer.config.options import TrainConfig
from trainer.config.reading.file import load_config
from trainer.record.outcome import MEANINGS, Outcome

OPTIONS: dict[str, Any] = {
    "model_flavour": "embedded",
    "instance_data_dir": "/data/ink",
    "resolution": 128,
    "max_train_steps": 20,
    "publish_to": "file:///adapters",
    "adapter_name": "ink",
}


def job(options: dict[str, Any] | None = None, **given: Any) -> TrainingJob:
    config = TrainConfig.model_validate(OPTIONS | (options or {}))
    name = given.pop("name", "ink")
    return TrainingJob(name=name, config=config, settings=JobSettings(**{"data_claim": "pictures"} | given))


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.36"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gpus": 2, "queue": "research", "models_claim": "weights", "service_account": "s3", "secret": "keys"},
    ],
)
def test_what_is_rendered_is_valid(given: dict[str, Any], version: str) -> None:
    for described in job(**given).objects():
        kubernetes_validate.validate(described, version, strict=True)


def test_a_job_requests_its_gpu_and_its_queue() -> None:
    _, described = job(gpus=2, queue="research").objects()
    assert described["spec"]["suspend"] is True
    assert described["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    pod = described["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["tolerations"]


def test_every_mount_has_its_volume_and_storage_of_s3_needs_none() -> None:
    for given, absent in (
        (job(), set()),
        (job({"instance_data_dir": "s3://pictures/ink", "publish_to": "s3://adapters"}), {"data", "adapters"}),
        (job({"instance_data_dir": "/examples/ink/pictures"}, data_claim=None), {"data"}),
    ):
        pod = given.objects()[1]["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert volumes == {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert {"config", "data", "adapters", "training", "models", "tmp"} - volumes == absent


def test_the_configuration_reaches_the_job_unchanged(tmp_path: Path) -> None:
    library = tmp_path / "prompts.json"
    library.write_text(json.dumps({"cat": "一只猫"}), encoding="utf-8")
    config, _ = load_config(None, OPTIONS | {"user_prompt_library": str(library), "output_dir": "here"})
    config_map, _ = TrainingJob(name="ink", config=config, settings=JobSettings(data_claim="pictures")).objects()
    path = tmp_path / "config.json"
    path.write_text(config_map["data"]["config.json"], encoding="utf-8")
    read, warnings = load_config(path, {})
    assert not warnings
    assert read == TrainConfig.model_validate(OPTIONS | {"validation_prompts": ["一只猫"]})


def test_exit_codes_and_retries_agree() -> None:
    rules = template()["spec"]["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}
    assert codes["Ignore"] == [Outcome.PREEMPTED]
    assert codes["FailJob"] == [Outcome.BAD_DATA, Outcome.OUT_OF_MEMORY, Outcome.GATED, Outcome.BAD_CONFIG]
    assert set(MEANINGS) == set(Outcome)
    assert meaning_of(78) == MEANINGS[Outcome.BAD_CONFIG]
    assert meaning_of(42) == MEANINGS[Outcome.UNKNOWN]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"name": "Ink_Style"}, "name"),
        ({"data_claim": None}, "data_claim"),
    ],
)
def test_a_job_that_cannot_be_is_refused_by_field(given: dict[str, Any], named: str) -> None:
    with pytest.raises(JobError, match=f"^{named}"):
        job(**given)


def test_settings_that_the_cluster_would_refuse_are_refused_by_option(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPTIONS), encoding="utf-8")
    wrong = {"memory": "4 gigabytes", "cpu": "two", "gpus": "-1", "queue": "no such/queue", "deadline-seconds": "0"}
    options = [text for option, value in wrong.items() for text in (f"--{option}", value)]
    done = run_lithograph("job", "render", "--config", "config.json", "--name", "ink", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (78, "")
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines()]
    assert {line.partition(" ")[0] for line in lines} == {f"--{option}" for option in wrong}
    assert "--memory = 4 gigabytes: not of a form that Kubernetes accepts; give 4Gi or 512Mi" in lines


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"instance_data_dir": "pictures"}, "instance_data_dir = pictures: "),
        ({"instance_data_dir": "/data/../etc"}, "instance_data_dir"),
        ({"instance_data_dir": None}, "instance_data_dir"),
        ({"publish_to": None}, "publish_to"),
        ({"publish_to": "file:///home/me"}, "publish_to"),
        ({"init_lora": "old.safetensors"}, "init_lora"),
        ({"pretrained_model_name_or_path": "/weights"}, "pretrained_model_name_or_path"),
        ({"validation_input": [{"path": "a.png", "prompt": "make it blue"}]}, "validation_input.0.path = a.png: "),
    ],
)
def test_paths_that_the_pod_does_not_have_are_refused_by_field(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}"):
        job(options)


def test_the_command_renders_yaml_and_refuses_a_bad_option(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPTIONS), encoding="utf-8")
    render = ("job", "render", "--config", "config.json", "--name", "ink", "--data", "pictures", "-n", "training")
    done = run_lithograph(*render, "--learning_rate", "2e-3", "seed=7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config_map, described = yaml.safe_load_all(done.stdout)
    assert json.loads(config_map["data"]["config.json"]) == OPTIONS | {
        "resolution": [128.0],
        "learning_rate": 2e-3,
        "seed": 7,
    }
    assert described["metadata"]["namespace"] == config_map["metadata"]["namespace"] == "training"

    done = run_lithograph(*render, "--gpu", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (78, "error: --gpu: unknown field; did you mean '--gpus'?\n")
    for option in ("lora_ranc=8", "lora_rank=0"):
        done = run_lithograph(*render, option, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (78, "")
        assert "lora_rank" in done.stderr


def kubeconfig(folder: Path, url: str) -> str:
    path = folder / "kubeconfig"
    connection = {
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": "none"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "training"}}],
    }
    path.write_text(yaml.safe_dump(connection), encoding="utf-8")
    return str(path)


def test_an_unreachable_cluster_is_an_error_of_one_line(tmp_path: Path) -> None:
    where = kubeconfig(tmp_path, f"http://127.0.0.1:{free_port()}")
    done = run_lithograph("job", "list", "--kubeconfig", where, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the cluster at http://127.0.0.1:")
    assert done.stderr.count("\n") == 1
    with pytest.raises(ClusterError, match="absent"):
        connect(kubeconfig=str(tmp_path / "absent"))
    with pytest.raises(ClusterError, match="elsewhere"):
        connect(kubeconfig=where, context="elsewhere")


@pytest.fixture
def forbidding(tmp_path: Path) -> Iterator[str]:
    """Return a kubeconfig of a server that replies like the API to an account without permissions."""

    class Forbidding(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply = json.dumps({"kind": "Status", "message": 'jobs.batch is forbidden: User "me" cannot list'}).encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Forbidding) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_a_call_that_the_cluster_forbids_is_an_error_of_its_own(forbidding: str) -> None:
    cluster = connect(kubeconfig=forbidding)
    assert cluster.namespace == "training"
    with pytest.raises(ClusterError, match=r'forbids it: .*User "me" cannot list'):
        cluster.list()


def test_the_shape_is_that_of_the_kubernetes_base() -> None:
    assert template() == yaml.safe_load((ROOT / "k8s" / "base" / "job" / "job.yaml").read_text(encoding="utf-8"))
