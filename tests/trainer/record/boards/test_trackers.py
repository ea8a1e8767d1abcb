"""Trainings in a real MLflow server and in Weights & Biases' offline mode: one run each, through resumptions and outages."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from longcat.errors import ConfigError
from tests.conftest import START_SECONDS, free_port
from tests.trainer.trainings import train
from trainer.config.options import TrainConfig
from trainer.record.boards import trackers
from trainer.record.boards.tracked_run import Item, Pictures, Point, RejectedError, TrackedRunSettings
from trainer.record.boards.trackers import Tracker, check_trackers, without_secrets

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a real MLflow server on SQLite, which also stores the pictures."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", (folder / "files").as_uri(),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while True:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").status_code == httpx.codes.OK:
                    break
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def runs_of(url: str, experiment: str) -> list[dict[str, Any]]:
    api = f"{url}/api/2.0/mlflow"
    found = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": experiment}).raise_for_status()
    experiment_id = found.json()["experiment"]["experiment_id"]
    reply = httpx.post(f"{api}/runs/search", json={"experiment_ids": [experiment_id]}).raise_for_status()
    return list(reply.json().get("runs", []))


def steps_of(url: str, run_id: str, metric: str) -> list[int]:
    parameters = {"run_id": run_id, "metric_key": metric}
    reply = httpx.get(f"{url}/api/2.0/mlflow/metrics/get-history", params=parameters).raise_for_status()
    return sorted(int(point["step"]) for point in reply.json()["metrics"])


def pictures_of(url: str, run_id: str) -> list[str]:
    parameters = {"run_id": run_id, "path": "images"}
    reply = httpx.get(f"{url}/api/2.0/mlflow/artifacts/list", params=parameters).raise_for_status()
    return [Path(file["path"]).name for file in reply.json().get("files", []) if file["path"].endswith(".png")]


def test_a_resumed_training_is_one_run_in_each_tracker(mlflow_url: str, pictures: Path, tmp_path: Path) -> None:
    options = {
        "report_to": "mlflow, wandb", "tracker_project_name": "墨 ink", "tracker_run_name": "first try",
        "resume_from_checkpoint": "latest", "checkpointing_steps": 2, "validation_prompt": "a cat",
        "pushgateway_url": "http://user:hunter2@127.0.0.1:9",
    }  # fmt: skip
    environment = {"MLFLOW_TRACKING_URI": mlflow_url, "WANDB_MODE": "offline", "WANDB_API_KEY": KEY}
    logs = ""
    for steps in (2, 4):
        done = train(pictures, tmp_path / "run", environment=environment, max_train_steps=steps, **options)
        assert done.returncode == 0, done.stderr
        logs += done.stdout + done.stderr
    assert "tracker_" not in logs
    (run,) = runs_of(mlflow_url, "墨 ink")
    run_id = run["info"]["run_id"]
    assert (run["info"]["run_name"], run["info"]["status"]) == ("first try", "FINISHED")
    parameters = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert (parameters["learning_rate"], parameters["max_train_steps"]) == ("0.001", "2")
    assert {one["key"] for one in run["data"]["metrics"]} >= {"loss", "learning_rate", "gradient_norm"}
    assert steps_of(mlflow_url, run_id, "loss") == [1, 2, 3, 4]
    shown = pictures_of(mlflow_url, run_id)
    assert {"step+2" in name for name in shown} == {"step+4" in name for name in shown} == {True, False}
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    for folder in folders:
        assert b"gradient_norm" in next(folder.glob("*.wandb")).read_bytes()
        assert list(folder.glob("files/media/images/**/*.png"))
    written = [file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert KEY not in logs
    assert not any(KEY.encode() in content for content in written)
    assert "hunter2" not in json.dumps(run)
    assert not any(
        b"hunter2" in file.read_bytes() for folder in folders for file in folder.rglob("*") if file.is_file()
    )


def board(folder: Path, name: str, rest: str, **variables: str) -> str:
    """Open one board in a process of its own, as a training does, and run the rest; return its log."""
    program = (
        "from pathlib import Path\n"
        "from longcat.logs import set_up_logging\n"
        "from trainer.record.boards.board import open_boards\n"
        "set_up_logging('json')\n"
        f"(board,) = open_boards([{name!r}], Path('.'), project='gone', run_name='r', config={{}}, after_step=3)\n"
        f"{rest}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


def test_a_run_that_was_deleted_there_gets_a_new_one(mlflow_url: str, tmp_path: Path) -> None:
    id_file = tmp_path / "trackers" / "mlflow.json"
    id_file.parent.mkdir()
    id_file.write_text('{"run_id": "0123456789abcdef0123456789abcdef"}')
    rest = (
        "import time; board.curves(4, {'loss': float('nan'), 'other': 1.0})\n"
        "while board._waiting: time.sleep(0.1)\n"
        "board.close('preempted')"
    )
    assert "tracker_" not in board(tmp_path, "mlflow", rest, MLFLOW_TRACKING_URI=mlflow_url)
    (run,) = runs_of(mlflow_url, "gone")
    assert run["info"]["status"] == "KILLED"
    assert json.loads(id_file.read_text()) == {"run_id": run["info"]["run_id"]}
    assert steps_of(mlflow_url, run["info"]["run_id"], "other") == [4]


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://user:hunter2@127.0.0.1:9"}),
        ("wandb", {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}),
    ],
)
def test_an_unreachable_tracker_is_logged_once_and_the_training_ends_as_ever(
    name: str, variables: dict[str, str], tmp_path: Path
) -> None:
    rest = "[board.curves(step, {'loss': 1.0}) for step in range(4, 50)]\nboard.close('finished')\nprint('ended')"
    log = board(tmp_path, name, rest, HOME=str(tmp_path), **variables)
    assert "ended" in log
    assert log.count("tracker_unreachable") <= 1  # none if the client itself waits longer than the end of a training
    assert log.count('"tracker_incomplete"') == 1
    assert '"items_not_sent": 47' in log
    assert "hunter2" not in log
    assert KEY not in log
    assert "Retrying" not in log


class Flaky:
    """A run in a tracker that fails, then rejects, then accepts items, and records them."""

    id = "one"

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.got: list[Item] = []
        self.state = ""

    def send(self, items: Sequence[Item]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.got += items

    def finish(self, state: str) -> None:
        self.state = state


def test_what_waits_through_an_outage_is_sent_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(trackers, "_SEND_SECONDS", 0.01)
    run = Flaky([OSError("http://me:secret@host refused"), OSError("again"), RejectedError("too long")])
    refused = threading.Event()

    def open_run(settings: TrackedRunSettings) -> Flaky:
        if not refused.is_set():
            refused.set()
            raise OSError("http://me:secret@host refused")
        return run

    tracker = Tracker("mlflow", open_run, tmp_path, project="p", run_name="r", config={"seed": 7}, resumes=False)
    while run.failures:
        time.sleep(0.001)
    for step in range(1, 500):
        tracker.curves(step, {"loss": 1.0})
    tracker.pictures(500, ["validation/a.png"])
    tracker.close("finished")
    points = [item for item in run.got if isinstance(item, Point)]
    assert [point.step for point in points] == list(range(1, 500))
    assert run.got[-1] == Pictures(500, (tmp_path / "validation" / "a.png",))
    assert run.state == "finished"
    assert json.loads((tmp_path / "trackers" / "mlflow.json").read_text()) == {"run_id": "one"}
    events = [vars(record)["event"] for record in caplog.records]
    assert events == ["tracker_unreachable", "tracker_rejected", "tracker_incomplete"]
    assert "secret" not in caplog.text


def test_what_waits_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "_MOST_WAITING", 10)

    def open_run(settings: TrackedRunSettings) -> Flaky:
        raise OSError("refused")

    tracker = Tracker("mlflow", open_run, tmp_path, project="p", run_name="r", config={}, resumes=False)
    for step in range(100):
        tracker.curves(step, {"loss": 1.0})
    tracker.close("finished")
    assert vars(caplog.records[-1])["fields"]["items_not_sent"] == 101


def test_a_tracker_without_an_address_is_refused_before_anything_is_loaded(pictures: Path, tmp_path: Path) -> None:
    done = train(pictures, tmp_path / "run", report_to="mlflow", environment={"MLFLOW_TRACKING_URI": ""})
    assert done.returncode == 78
    assert "MLFLOW_TRACKING_URI" in done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["phase"], record["problems"][0]["code"]) == ("preparing", "tracker_without_address")


def test_a_tracker_without_a_key_is_refused(tmp_path: Path) -> None:
    program = "from trainer.record.boards.trackers import check_trackers; check_trackers(['wandb'])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert "WANDB_API_KEY" in done.stderr.splitlines()[-1]


def test_a_tracker_that_is_not_installed_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wandb").mkdir()  # a directory of Weights & Biases, not the package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in ("mlflow", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ConfigError, match=r"pip install 'lithograph\[trackers\]'") as caught:
            check_trackers(["tensorboard", name])
        assert caught.value.problems[0].code == "tracker_not_installed"


def test_passwords_do_not_reach_a_tracker() -> None:
    given = {"pushgateway_url": "http://u:p@host:9091/x", "prompts": ("a cat", "a@b"), "seed": 7, "publish_to": None}
    assert without_secrets(given) == {
        "pushgateway_url": "http://***@host:9091/x", "prompts": ["a cat", "a@b"], "seed": 7, "publish_to": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("none", ()), (None, ()), ("", ()), ("tensorboard", ("tensorboard",)), ("mlflow,wandb", ("mlflow", "wandb")),
        (["wandb", "wandb", "none"], ("wandb",)), (" mlflow , tensorboard ", ("mlflow", "tensorboard")),
    ],
)  # fmt: skip
def test_report_to_takes_a_list(given: object, read: tuple[str, ...]) -> None:
    assert TrainConfig.model_validate({"report_to": given}).report_to == read


@pytest.mark.parametrize("given", ["comet_ml", "all", ["mlflow", 7], {"mlflow": True}, True])
def test_report_to_refuses_others(given: object) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"report_to": given})


@pytest.mark.parametrize("given", ["", "it's", 'a"b', "a/b", "a\nb", "a" * 129])
def test_a_project_has_a_name_that_both_take(given: str) -> None:
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"tracker_project_name": given})
