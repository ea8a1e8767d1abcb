"""The groups of checks, each of which has a process of its own. No torch.

A process of its own keeps what one group does to torch (compilation, an allocator's limit, a lost device) from the others.
"""

from dataclasses import dataclass

PART_SECONDS = 600.0
"""The most time of a part."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The checks of one module's ``run``."""

    part: int
    name: str
    module: str
    argument: str = ""
    """Handed to ``run``, where several groups share a module."""
    seconds: float = 180.0
    """The most time of the group: a check that hangs ends with it."""
    is_short: bool = False
    """True for a group of the short form."""


_HERE = "benchmarks.gpu_check"
_PRECISIONS = ("int8-torchao", "int8-quanto", "fp8-torchao", "int4-quanto", "fp8-quanto")

GROUPS = (
    Group(part=1, name="ceilings", module=f"{_HERE}.serving.ceilings", seconds=60, is_short=True),
    Group(part=1, name="embedded", module=f"{_HERE}.serving.embedded", seconds=180),
    Group(part=1, name="forward", module=f"{_HERE}.serving.forward", is_short=True),
    Group(part=1, name="adapters", module=f"{_HERE}.serving.adapters", seconds=120, is_short=True),
    Group(part=1, name="encoders", module=f"{_HERE}.serving.encoders", seconds=90, is_short=True),
    Group(part=1, name="cold start", module=f"{_HERE}.serving.cold_start", seconds=300),
    *(
        Group(
            part=2,
            name=name,
            module=f"{_HERE}.variants.precision",
            argument=name,
            seconds=60,
            is_short=name == "int8-torchao",
        )
        for name in _PRECISIONS
    ),
    Group(part=2, name="offload", module=f"{_HERE}.variants.offload", seconds=120, is_short=True),
    Group(part=2, name="memory", module=f"{_HERE}.variants.memory", seconds=120, is_short=True),
    Group(part=2, name="device lost", module=f"{_HERE}.variants.device_lost", seconds=60, is_short=True),
    Group(part=2, name="compile", module=f"{_HERE}.variants.compiled", seconds=180),
    Group(part=2, name="server", module=f"{_HERE}.variants.server", seconds=240),
    Group(part=2, name="throughput", module=f"{_HERE}.variants.throughput", seconds=240),
    Group(part=3, name="steps", module=f"{_HERE}.training.steps", seconds=240, is_short=True),
    Group(part=3, name="ways", module=f"{_HERE}.training.ways", seconds=180, is_short=True),
    Group(part=3, name="distributed", module=f"{_HERE}.training.distributed", seconds=120),
    Group(part=3, name="run", module=f"{_HERE}.training.lifecycle", seconds=240),
)
