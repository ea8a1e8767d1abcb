"""The distributed process group of torchrun."""

import subprocess
import sys
from pathlib import Path

SHOW = """
import torch
from trainer.loop.distributed import ProcessGroup
group = ProcessGroup("cpu")
backend = torch.distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
print("seconds", backend.options._timeout.total_seconds())
"""


def test_processes_wait_for_one_that_validates_longer_than_the_library_would(tmp_path: Path) -> None:
    file = tmp_path / "show.py"
    file.write_text(SHOW, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "seconds 86400.0" in done.stdout, done.stderr
