"""A device-side assertion: every later operation of the process fails, and the engine must not go on as if ready."""

from functools import partial

import torch

from benchmarks.gpu_check.checks import Check, Failed, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import synchronize
from benchmarks.gpu_check.subjects.pictures import EngineRun
from longcat.model.device.errors import is_device_lost


def run(kit: Kit) -> None:
    """Provoke it, in a process that does nothing else afterwards."""
    kit.checks.run("a device-side assertion ends the step loop", partial(_lose, kit))


def _lose(kit: Kit, check: Check) -> None:
    if kit.settings.is_cpu:
        raise Skipped("a CPU has no device-side assertions")
    pictures = EngineRun(kit.model.components())
    pictures.submit("before", steps=1)
    pictures.run()
    pictures.submit("after", steps=2)
    try:
        _assert_on_device(kit.device)
    except torch.AcceleratorError as error:
        check.require(is_device_lost(error), f"it is not taken for a lost device: {error}")
    try:
        pictures.run()
    except torch.AcceleratorError as error:
        check.require(is_device_lost(error), f"it is not taken for a lost device: {error}")
        return
    raise Failed("the step loop went on")


def _assert_on_device(device: torch.device) -> None:
    """Index beyond the end of a tensor, which a CUDA kernel asserts against."""
    values, beyond = torch.zeros(4, device=device), torch.tensor([9], device=device)
    try:
        values[beyond]
        synchronize(device)
    except IndexError as error:
        raise Skipped("this device checks indices on the host") from error
    raise Failed("the device did not notice an index beyond the end")
