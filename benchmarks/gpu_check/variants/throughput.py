"""Pictures a second beside plain LitServe with diffusers, on the same requests (``loadtest.closed_loop``)."""

import json
import subprocess
import sys
from functools import partial

from benchmarks.gpu_check.checks import Check, Failed
from benchmarks.gpu_check.kit import Kit


def run(kit: Kit) -> None:
    """Compare both servers."""
    kit.checks.run("beside plain LitServe, 4 clients", partial(_compare, kit))


def _compare(kit: Kit, check: Check) -> None:
    steps = "8,12" if kit.settings.is_full else "4"
    command = [
        *(sys.executable, "-m", "loadtest.closed_loop", "--servers", "lithograph,plain", "--clients", "4"),
        *("--adapters", "0", "--rounds", "1", "--pictures", "2", "--steps", steps, "--size", str(kit.model.side_px)),
        *("--device", kit.settings.device, "--model", kit.model.written()),
        *("--dtype", "float32" if kit.settings.is_cpu else "bfloat16"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Failed(f"the load test ended with exit code {done.returncode}")
    report = json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])
    for name, measured in report["servers"].items():
        for figure, value in measured["median"].items():
            check.note(**{f"{name} {figure}": value})
    for pair, measured in report["ratios"].items():
        check.note(**{f"{pair} {figure}": value for figure, value in measured["median"].items()})
