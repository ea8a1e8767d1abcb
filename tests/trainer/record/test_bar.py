"""The progress of a training on a terminal and in a log file."""

import json
import subprocess
import sys
from pathlib import Path

from tests.terminal import shown_on_a_terminal

SHOWN = """
import sys
import termios
from contextlib import suppress
from pathlib import Path
from longcat.logs import set_up_logging
from tests.trainer.record.test_progress import report, run
set_up_logging()
with run(Path(sys.argv[1]), total_steps=3, show_bar=True) as progress:
    progress.cache("latents", 4, 4, 0)
    for step in (1, 2, 3):
        progress.step(report(step, loss=0.125, images=4))
    progress.denoising(4, 8, "the base, 128x128")
    progress.checkpoint(3, 0.25, 4096)
    progress.finish("finished", (), 0)
"""


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    text = shown_on_a_terminal(sys.executable, "-c", SHOWN, str(tmp_path))
    assert "latents: 100%" in text
    assert "training: 100%" in text
    assert "loss 0.125, 0.1 s/step, 40 images/s" in text
    assert "validating:  50%" in text
    assert "the base, 128x128" in text
    assert "checkpoint: step 3, seconds 0.25, size bytes 4096" in text
    assert '"event"' not in text


def test_a_log_file_gets_no_bar(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", SHOWN, str(tmp_path)], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert "%" not in finished.stderr
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    line = next(line for line in lines if line["event"] == "checkpoint")
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO", "logger": "lithograph.trainer", "event": "checkpoint", "step": 3, "seconds": 0.25,
        "size_bytes": 4096,
    }  # fmt: skip
