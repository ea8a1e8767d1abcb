"""The trainer's metrics as read by Prometheus: from its port, and through a real Pushgateway."""

import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from longcat.errors import ConfigError
from tests.conftest import free_port
from tests.trainer.record.test_progress import GREY, report, run
from trainer.record.metrics import TrainerMetrics

GATEWAY = shutil.which("prometheus-pushgateway")


def samples(text: str) -> dict[str, float]:
    """Return values by name and labels, without the labels that a Pushgateway adds."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name not in ("job", "run", "instance")}
            text = ",".join(f"{name}={value}" for name, value in labels.items())
            found[f"{sample.name}{{{text}}}" if text else sample.name] = sample.value
    return {name.removeprefix("lithograph_trainer_"): value for name, value in found.items()}


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[str]:
    if GATEWAY is None:
        pytest.fail("no prometheus-pushgateway: apt-get install prometheus-pushgateway")
    address = f"127.0.0.1:{free_port()}"
    command = [
        GATEWAY,
        f"--web.listen-address={address}",
        "--persistence.file=",
    ]  # Debian's default keeps the groups of other tests
    with (tmp_path / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"http://{address}/-/ready").raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline, (tmp_path / "gateway.log").read_text()
                time.sleep(0.05)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_prometheus_reads_the_port_during_training(tmp_path: Path) -> None:
    port = free_port()
    with run(tmp_path, metrics_port=port) as progress:

        def scrape() -> dict[str, float]:
            return samples(httpx.get(f"http://127.0.0.1:{port}/metrics").text)

        before = scrape()
        assert before["state{state=running}"] == 1
        assert before["phase{phase=preparing}"] == 1
        assert before["target_steps"] == 100
        unknown = {"loss", "learning_rate", "images_per_second", "eta_seconds", "last_step_timestamp_seconds"}
        assert not unknown & before.keys()

        progress.phase("caching")
        progress.cache("latents", 2, 4, 2)
        progress.cache("latents", 4, 4, 3)
        progress.phase("training")
        progress.step(report(1, loss=0.5, seconds=0.5, images=2))
        progress.step(report(2, loss=0.25, seconds=0.5, images=2))
        progress.checkpoint(2, 0.3, 1000)
        progress.validation(2, [], [GREY])
        after = scrape()
        assert after.keys() >= unknown
        assert (after["loss"], after["learning_rate"], after["step"]) == (0.25, 1e-4, 2)
        assert after["images_total"] == 4
        assert after["images_per_second"] == pytest.approx(4)
        assert after["eta_seconds"] == pytest.approx(49)
        assert after["step_seconds_count"] == 2
        assert after["step_seconds_bucket{le=0.25}"] == 0
        assert after["step_seconds_bucket{le=0.5}"] == 2
        assert 0 <= time.time() - after["last_step_timestamp_seconds"] < 3600
        assert (after["cache_entries_total{kind=latents,outcome=hit}"], after["checkpoints_total"]) == (3, 1)
        assert after["cache_entries_total{kind=latents,outcome=made}"] == 1
        assert after["checkpoint_seconds_sum"] == pytest.approx(0.3)
        assert after["validations_total{outcome=failed}"] == 1
        assert after["validations_total{outcome=passed}"] == 0
        assert [after[f"phase{{phase={name}}}"] for name in ("preparing", "caching", "training")] == [0, 0, 1]

        progress.step(report(3, loss=math.nan))
        assert math.isnan(scrape()["loss"])
        progress.finish("finished", (), 0)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_a_resumed_run_counts_from_its_checkpoint() -> None:
    metrics = TrainerMetrics(total_steps=10)
    metrics.resumed(7)
    assert metrics.registry.get_sample_value("lithograph_trainer_step") == 7


def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"metrics_port = {port}: cannot be opened"),
            run(tmp_path, metrics_port=port),
        ):
            pytest.fail("the run began although its port is taken")


def test_a_short_job_pushes_its_metrics_at_its_end(tmp_path: Path, gateway: str) -> None:
    with run(tmp_path, run_id="ink/1", pushgateway_url=gateway) as progress:
        progress.step(report(1, loss=0.5))
        progress.finish("preempted", (), 75)
    groups = httpx.get(f"{gateway}/api/v1/metrics").json()["data"]
    assert [group["labels"] for group in groups] == [{"job": "lithograph-trainer", "run": "ink/1"}]
    pushed = samples(httpx.get(f"{gateway}/metrics").text)
    assert (pushed["loss"], pushed["step"]) == (0.5, 1)
    assert (pushed["state{state=preempted}"], pushed["state{state=running}"]) == (1, 0)


def test_metrics_are_pushed_while_a_run_continues(
    tmp_path: Path, gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.record.metrics.PUSH_SECONDS", 0.05)
    with run(tmp_path, pushgateway_url=gateway) as progress:
        progress.step(report(1, loss=math.nan))
        deadline = time.monotonic() + 120
        while "loss" not in (pushed := samples(httpx.get(f"{gateway}/metrics").text)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert math.isnan(pushed["loss"])
        assert pushed["state{state=running}"] == 1
        progress.finish("finished", (), 0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://127.0.0.1:port", "http://["])
def test_an_unreachable_gateway_is_logged_once(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with run(tmp_path, pushgateway_url=url.format(port=free_port())) as progress:
        progress.step(report(1))
        progress.finish("finished", (), 0)
    warned = [record for record in caplog.records if "pushgateway unreachable:" in record.getMessage()]
    assert len(warned) == 1  # pushing failed twice: at the start and at the end
