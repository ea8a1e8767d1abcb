"""The embedded model from pictures to a served adapter: train, SIGTERM, resume, validate, publish, serve."""

import signal
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.subjects.pictures import read_pixels
from benchmarks.gpu_check.training.commands import end_of, start, train_command
from benchmarks.gpu_check.variants.server import serve_setup
from lithograph.client.client import Client
from loadtest.servers import ServerProcess
from trainer.record.outcome import Outcome
from trainer.record.run_file import read_run

_STEPS = 12
_NAME = "ink"
_FIRST_CHECKPOINT_SECONDS = 500.0


def run(kit: Kit) -> None:
    """Go the whole way, a check each; each needs the ones before it."""
    folder = kit.settings.folder / f"training-{time.time_ns()}"
    output, storage = folder / "run", (folder / "adapters").as_uri()
    options = {
        "max_train_steps": _STEPS, "checkpointing_steps": 2, "validation_steps": _STEPS // 2, "publish_to": storage,
        "adapter_name": _NAME,
    }  # fmt: skip
    command = train_command(kit, output, options)
    kit.checks.run("SIGTERM saves a checkpoint", partial(_stop, command, output))
    kit.checks.run("resumed, validated and published", partial(_resume, command, output))
    kit.checks.run("served", partial(_serve, kit, storage, folder / "serve.log"))


def _stop(command: list[str], output: Path, check: Check) -> None:
    begin, log = time.monotonic(), output.parent / "train.log"
    process = start(command, log)
    try:
        while not list(output.glob("checkpoints/*/checkpoint.json")):
            check.require(process.poll() is None, f"the training ended: {end_of(log)}")
            check.require(time.monotonic() - begin < _FIRST_CHECKPOINT_SECONDS, "there is no checkpoint")
            time.sleep(0.02)
        check.note(first_checkpoint_s=time.monotonic() - begin)
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    finally:
        process.kill()
    check.note(exit_code=code, steps=read_run(output).step)
    check.require(code == Outcome.PREEMPTED, f"the exit code is {code}: {end_of(log)}")


def _resume(command: list[str], output: Path, check: Check) -> None:
    begin, log = time.monotonic(), output.parent / "train.log"
    code = start(command, log).wait()
    check.note(s=time.monotonic() - begin, exit_code=code)
    check.require(code == Outcome.FINISHED, f"the exit code is {code}: {end_of(log)}")
    record = read_run(output)
    check.note(steps=record.step, validations=len(record.validations), published=str(record.published))
    check.require(record.step == _STEPS, f"{record.step} of {_STEPS} steps were made")
    check.require(record.published == f"{_NAME}@1", f"published is {record.published}")


def _serve(kit: Kit, storage: str, log: Path, check: Check) -> None:
    server = ServerProcess(serve_setup(kit, "embedded", storage), log)
    try:
        server.wait_until_ready()
        with Client(server.url) as client:
            plain, adapted = (
                read_pixels(client.generate("a cat, ink style", seed=1, steps=4, adapters=adapters).images[0].content)
                for adapters in ((), (_NAME,))
            )
    finally:
        server.stop()
    check.require(bool((plain != adapted).any()), "the adapter changes nothing")
