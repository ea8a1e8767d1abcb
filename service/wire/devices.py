"""The devices of one server, from the option ``--devices``: each has an engine process of its own."""

import re
from collections.abc import Iterable, Sequence

from longcat.problem import Problem
from longcat.validation import ProblemValueError

_DEVICE = re.compile(r"cpu|cuda:[0-9]{1,3}")


def parse_devices(given: Iterable[str]) -> tuple[str, ...]:
    """Return the devices in lists such as ``0,1``, ``cuda:0,cuda:1`` or ``cpu,cpu``. Raises ``ProblemValueError``.

    A CPU may be given several times: its cores are divided among the engines.
    """
    names = [name.strip() for text in given for name in text.split(",")]
    devices = tuple(f"cuda:{int(name)}" if name.isascii() and name.isdigit() else name for name in names)
    for device in devices:
        if not _DEVICE.fullmatch(device):
            raise ProblemValueError(
                Problem(
                    code="devices_invalid",
                    template="{device} is not the number of a GPU, cuda:N or cpu",
                    remedy_template="give a list such as {example}",
                    details={"device": device, "example": "0,1"},
                )
            )
        if device != "cpu" and devices.count(device) > 1:
            raise ProblemValueError(
                Problem(
                    code="device_twice",
                    template="{device} is given twice, and two engines would take each other's memory",
                    remedy_template="give each GPU once",
                    details={"device": device},
                )
            )
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise ProblemValueError(
            Problem(
                code="devices_of_two_kinds",
                template="GPUs and CPUs do not give the same pictures",
                remedy_template="give devices of one kind",
            )
        )
    return devices


def names_of(devices: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each engine: its device, with a number where several engines share a CPU."""
    is_shared = len(set(devices)) < len(devices)
    return tuple(f"{device}:{number}" if is_shared else device for number, device in enumerate(devices))
