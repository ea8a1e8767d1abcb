"""Build the simulated device and run its tests: ``python -m tests.simulated_gpu [pytest arguments]``."""

import os
import sys

from tests.simulated_gpu.device import build


def main() -> None:
    """Become pytest, with the device's library loaded before torch's."""
    command = [sys.executable, "-m", "pytest", "-m", "simulated_gpu", "tests/simulated_gpu", *sys.argv[1:]]
    os.execve(sys.executable, command, os.environ | {"LD_PRELOAD": str(build())})


if __name__ == "__main__":
    main()
