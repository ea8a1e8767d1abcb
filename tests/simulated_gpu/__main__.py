"""Build the simulated device and run its tests: ``python -m tests.simulated_gpu [pytest arguments]``."""

import os
import sys

from tests.simulated_gpu.device import build


def main() -> None:
    """Replace this process by pytest, with the device's library loaded before torch's, and without compilers."""
    two = ("--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    command = [sys.executable, "-m", "pytest", "-m", "simulated_gpu", "tests/simulated_gpu", *two, *sys.argv[1:]]
    changed = {"LD_PRELOAD": str(build()), "PATH": "", "CC": "", "CXX": ""}
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    os.execve(sys.executable, command, environment | changed)


if __name__ == "__main__":
    main()
