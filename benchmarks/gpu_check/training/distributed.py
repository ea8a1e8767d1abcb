"""A training under torchrun with one process: NCCL on a GPU, gloo on a CPU."""

import time
from functools import partial

from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.training.commands import end_of, start, train_command

_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")


def run(kit: Kit) -> None:
    """Train."""
    kit.checks.run("torchrun with one process", partial(_train, kit))


def _train(kit: Kit, check: Check) -> None:
    folder = kit.settings.folder / "distributed"
    output, log = folder / f"run-{time.time_ns()}", folder / "train.log"
    options = {"max_train_steps": 4, "validation_disable": "true"}
    begin = time.monotonic()
    code = start(train_command(kit, output, options, launcher=_TORCHRUN), log).wait()
    check.note(s=time.monotonic() - begin, exit_code=code)
    check.require(code == 0, f"the exit code is {code}: {end_of(log)}")
    check.require((output / "adapter.safetensors").exists(), "there is no adapter")
