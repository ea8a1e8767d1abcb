"""The log in both of its forms: from a real server and a real command, into a file and on a terminal."""

import io
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from longcat.logs import JsonLines, log_event
from tests.conftest import RunningServer, run_lithograph
from tests.service.http.replies import metric
from tests.terminal import shown_on_a_terminal

NOTE = 'a "line"\nand another\u2028and\x85more\x1b[31m\x9b31m'
APPLE = {"prompt": "一个红苹果", "steps": 2, "seed": 5}


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("lithograph.tests")
    logger.addHandler(handler)
    yield logger, stream
    logger.removeHandler(handler)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_an_event_is_one_line_of_json_whatever_its_fields_hold(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    fields = {
        "loss": float("nan"),
        "adapters": ["ink@1"],
        "note": NOTE,
        "path": Path("/a"),
        "no": None,
    }
    log_event(logger, "adapter_served", logging.WARNING, **fields)
    (line,) = lines(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING", "logger": "lithograph.tests", "event": "adapter_served",
        "loss": "nan", "adapters": ["ink@1"], "note": NOTE, "path": "/a",
    }  # fmt: skip


def test_text_lines_have_no_line_breaks_and_no_terminal_escapes() -> None:
    stream = io.StringIO()
    logger = logging.Logger("lithograph.tests")
    logger.addHandler(logging.StreamHandler(stream))
    log_event(logger, "adapter_served", note=NOTE, name="\x1b[31m")
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()


def test_a_stack_trace_is_part_of_its_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    try:
        raise ValueError("没有")
    except ValueError:
        logger.exception("it %s", "failed")
    (line,) = lines(stream.getvalue())
    assert line["message"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: 没有")


def test_every_request_is_one_line(server: RunningServer, client: httpx.Client) -> None:
    drawn = client.post("/generate", json=APPLE | {"num_images": 2})
    client.post("/generate", json=APPLE | {"steps": 0})
    client.post("/generate", json=APPLE | {"steps": 90, "num_images": 8, "timeout_seconds": 0.2})
    before = metric(client, "lithograph_cancelled_requests_total")
    left = APPLE | {"steps": 90, "num_images": 8, "seed": 77, "stream": True}
    with client.stream("POST", "/generate", json=left) as reply:
        next(reply.iter_lines())
    deadline = time.monotonic() + 60
    while not (  # one process writes the line, another counts
        re.search(r'"request_cancelled".*"seed": 77,', server.log_text())
        and metric(client, "lithograph_cancelled_requests_total") > before
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    told = [line for line in lines(server.log_text()) if line.get("event", "").startswith("request_")]
    (line,) = [line for line in told if line.get("request_id") == drawn.headers["X-Request-Id"]]
    assert line["event"] == "request_drawn"
    assert (line["size"], line["steps"], line["images"], line["seed"]) == ("128x128", 2, 2, 5)
    assert all(line[f"{phase}_seconds"] >= 0 for phase in ("queue", "text", "denoise", "decode", "encode"))
    assert line["total_seconds"] >= line["denoise_seconds"] > 0
    assert "trace_id" not in line
    refused = [line for line in told if line["event"] == "request_refused"]
    assert any(line["status"] == 422 and line["message"].startswith("steps = 0: ") for line in refused)
    failed = [line for line in told if line["event"] == "request_failed"]
    assert any(line["status"] == 504 and line["code"] == "timeout" for line in failed)
    cancelled = [line for line in told if line["event"] == "request_cancelled"]
    assert [line["seed"] for line in cancelled].count(77) == 1


TOLD = """
import logging, sys
from longcat.logs import set_up_logging, log_event
set_up_logging(sys.argv[1])
log_event(logging.getLogger("lithograph"), "adapter_served", adapter="ink@2", rank=8)
"""


@pytest.mark.parametrize("form", ["auto", "json"])
def test_a_terminal_gets_text_unless_the_format_is_json(form: str) -> None:
    line = shown_on_a_terminal(sys.executable, "-c", TOLD, form).rstrip()
    if form == "json":
        assert json.loads(line)["adapter"] == "ink@2"
    else:
        assert line.endswith(" INFO lithograph: adapter served: adapter ink@2, rank 8")


def test_a_training_s_log_takes_its_form_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_flavour": "embedded", "instance_data_dir": str(tmp_path / "nothing"), "output_dir": str(tmp_path)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("LITHOGRAPH_TRAIN_LOG_FORMAT", "text")
    log = run_lithograph("train", "--config", "config.json", cwd=tmp_path).stderr
    assert re.search(r"^2\d{3}-.* INFO lithograph.trainer: started: run id run-", log, re.MULTILINE), log
