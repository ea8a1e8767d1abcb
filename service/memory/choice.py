"""The meaning of ``auto``: the settings of serving that fit a GPU and cost the least in quality and speed. No torch.

Explicit settings are kept. Where even they leave no memory for one image of the default size, serving is refused before
anything is loaded; where images of a size are too large, requests are refused when they come
(``service.memory.admission``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from longcat.errors import ConfigError, PrecisionError
from longcat.model.memory.device import readable
from longcat.model.precision import Offload, Precision
from service.config import AUTO, DEFAULT_RANK, DEFAULT_ROWS, DEFAULT_SLOTS, AdapterConfig, ModelConfig
from service.memory.plan import ServingPlan, ServingWorkload, plan


class Format(NamedTuple):
    """The storage of the weights."""

    precision: Precision
    text_encoder_precision: Precision
    offload: Offload


class Capacity(NamedTuple):
    """The slots, their rank, and the rows of a forward at the default size."""

    slots: int
    rank: int
    rows: int


_INT8 = Precision.INT8_TORCHAO
FORMATS = (
    Format(Precision.NO_CHANGE, Precision.NO_CHANGE, Offload.NONE),
    Format(Precision.NO_CHANGE, _INT8, Offload.NONE),
    Format(_INT8, _INT8, Offload.NONE),
    Format(_INT8, _INT8, Offload.MODEL),
    Format(_INT8, _INT8, Offload.GROUP),
)
"""Formats that ``auto`` tries, the best first. int8-torchao has the least error of the precisions that halve the weights."""
DEFAULT_CAPACITY = Capacity(DEFAULT_SLOTS, DEFAULT_RANK, DEFAULT_ROWS)
_CAPACITIES = (
    DEFAULT_CAPACITY,
    *(Capacity(DEFAULT_SLOTS, DEFAULT_RANK, rows) for rows in (8, 6, 4)),
    *(Capacity(4, DEFAULT_RANK, rows) for rows in (8, 4)),
)
"""Capacities that ``auto`` tries for each format, before it takes the next format."""
_LEAST_CAPACITIES = (*(Capacity(4, DEFAULT_RANK, rows) for rows in (3, 2)), Capacity(4, 32, 2), Capacity(4, 16, 2))
"""Capacities for a device that fits none of those in any format."""


@dataclass(frozen=True, kw_only=True)
class GivenSettings:
    """The settings that were given; None where ``auto`` decides."""

    precision: Precision | None = None
    text_encoder_precision: Precision | None = None
    offload: Offload | None = None
    slots: int | None = None
    rank: int | None = None
    rows: int | None = None

    @classmethod
    def of(cls, model: ModelConfig, adapters: AdapterConfig | None, max_rows: int | None) -> Self:
        """Return the settings that a configuration fixes; those that it leaves open are None."""
        precision, text_encoder_precision = (
            None if name == AUTO else Precision(name) for name in (model.precision, model.text_encoder_precision)
        )
        return cls(
            precision=precision,
            text_encoder_precision=text_encoder_precision,
            offload=None if model.offload == AUTO else Offload(model.offload),
            slots=None if adapters is None else adapters.slots,
            rank=None if adapters is None else adapters.rank,
            rows=max_rows,
        )

    def format(self, tried: Format) -> Format:
        """Return a format with the settings that were given."""
        return Format(
            self.precision or tried.precision,
            self.text_encoder_precision or tried.text_encoder_precision,
            self.offload or tried.offload,
        )

    def capacity(self, tried: Capacity) -> Capacity:
        """Return a capacity with the settings that were given."""
        return Capacity(
            tried.slots if self.slots is None else self.slots, self.rank or tried.rank, self.rows or tried.rows
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The settings that were chosen for a device."""

    plan: ServingPlan
    usable_bytes: int
    """The memory of the device that may be filled."""
    others: tuple[ServingPlan, ...]
    """The largest capacity of every other format that fits, the best first."""

    @property
    def fits(self) -> bool:
        """False if steps of all rows do not fit at once, so that requests wait for memory."""
        return self.plan.most_bytes <= self.usable_bytes


def check_format(given: GivenSettings) -> None:
    """Raise ``PrecisionError`` for formats that a GPU trains with but serves badly."""
    for field, precision in (
        ("precision", given.precision),
        ("text_encoder_precision", given.text_encoder_precision),
    ):
        if precision is Precision.INT4_QUANTO:
            raise PrecisionError(
                "precision_slow_for_serving",
                "every step unpacks its weights, which has not been measured on a GPU; torch's kernel for 4 bits is for few "
                "tokens, and an image has thousands",
                remedy="use int8-torchao",
                field=field,
                value=precision.value,
            )


def choose(given: GivenSettings, workload: ServingWorkload, usable_bytes: int) -> Choice:
    """Choose for a GPU. ``workload`` gives what is not chosen. Raises ``ConfigError`` if no image fits."""
    best = [found for tried in FORMATS if (found := _largest(given, tried, _CAPACITIES, workload, usable_bytes))]
    if not best:
        least = (_largest(given, tried, _LEAST_CAPACITIES, workload, usable_bytes) for tried in FORMATS)
        best = [found for found in least if found]
    if best:
        different = {(p.workload.precision, p.workload.text_encoder_precision, p.workload.offload): p for p in best}
        chosen, *others = different.values()
        return Choice(plan=chosen, usable_bytes=usable_bytes, others=tuple(others))
    smallest = min(_plans(given, workload), key=lambda made: made.most_bytes)
    if _fits_an_image(smallest, usable_bytes):
        return Choice(plan=smallest, usable_bytes=usable_bytes, others=())
    raise _too_large(smallest, usable_bytes)


def _largest(
    given: GivenSettings, tried: Format, capacities: Sequence[Capacity], workload: ServingWorkload, usable_bytes: int
) -> ServingPlan | None:
    """Return the plan of the first capacity that fits in a format."""
    for capacity in capacities:
        made = plan(_workload(given.format(tried), given.capacity(capacity), workload))
        if made.most_bytes <= usable_bytes:
            return made
    return None


def _plans(given: GivenSettings, workload: ServingWorkload) -> Iterator[ServingPlan]:
    for tried in FORMATS:
        yield plan(_workload(given.format(tried), given.capacity(_LEAST_CAPACITIES[-1]), workload))


def _workload(chosen: Format, capacity: Capacity, workload: ServingWorkload) -> ServingWorkload:
    """Return a workload with these settings; without adapters, it has no slots."""
    slots = capacity.slots if workload.slots else 0
    return replace(workload, **chosen._asdict(), slots=slots, rank=capacity.rank, rows=capacity.rows)


def _fits_an_image(made: ServingPlan, usable_bytes: int) -> bool:
    side = made.workload.default_px
    row = made.row_bytes(width_px=side, height_px=side) + made.image_bytes(width_px=side, height_px=side, steps=1)
    return made.free_bytes(usable_bytes) >= row


def _too_large(least: ServingPlan, usable_bytes: int) -> ConfigError:
    load = least.workload
    return ConfigError(
        "serving_does_not_fit",
        "serving takes {needed} even with precision {precision}, offload {offload}, {slots} adapter slots of rank {rank} "
        "and {rows} rows, and {usable} of the device can be used",
        remedy="leave out --precision, --text-encoder-precision, --offload, --adapter-slots, --adapter-rank and --max-rows, "
        "end other programs on the device, or use a larger one",
        needed=readable(least.most_bytes),
        precision=load.precision.value,
        offload=load.offload.value,
        slots=load.slots,
        rank=load.rank,
        rows=load.rows,
        usable=readable(max(0, usable_bytes)),
    )
