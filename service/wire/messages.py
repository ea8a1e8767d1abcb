"""Commands from the HTTP process to an engine process, and the replies. No torch: the HTTP process has none."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from longcat.adapter.manifest import Sampling
from longcat.problem import Problem
from longcat.sampling.encoding.source_picture import SourcePicture
from service.wire.events import Event
from service.wire.schema import NORMAL, Priority, ResolvedRequest


@dataclass(frozen=True, kw_only=True)
class GenerateCommand:
    """Generate the images of a request."""

    id: str
    """Unique, and known to the service and the client alone: replies go by it."""
    request_id: str
    """The id that replies and log lines have, which the client may have chosen."""
    request: ResolvedRequest
    picture: SourcePicture | None = None
    """The picture of a request that changes one, at the size of its images."""
    defaulted: tuple[str, ...] = ()
    """Fields, of ``steps`` and ``guidance_scale``, that the client has left out: adapters may have defaults for them."""
    max_steps: int = sys.maxsize
    """Most steps of a request on this server."""
    submitted_at: float
    deadline: float
    """``arrival`` and ``deadline`` are on ``time.monotonic``'s clock, which the processes of one machine share."""
    key: str | None = None
    """Name of the API key that the request was sent with."""
    share: float = 1.0
    """The key's share of the device, relative to those of other keys."""
    priority: Priority = NORMAL
    stream: bool = False
    """Send an ``AcceptedEvent``."""
    progress: bool = False
    """Send a ``StepEvent`` after every step."""
    previews: int = 0
    """Most ``PreviewEvent`` of one image, spread over its steps."""
    trace: Mapping[str, str] | None = None
    """W3C Trace Context headers of the request's span; None without tracing."""

    @property
    def trace_id(self) -> str | None:
        """The id of the request's trace."""
        return None if self.trace is None else self.trace["traceparent"].split("-")[1]


@dataclass(frozen=True, kw_only=True)
class CancelCommand:
    """Stop the steps of a request, and send no more events of it."""

    id: str


class AdapterAction(StrEnum):
    """Actions on an adapter while serving."""

    LIST = "list"
    FIND = "find"
    """Report on one version alone, ``name@version``, if requests can name it. Its weights are not loaded."""
    LOAD = "load"
    PIN = "pin"
    UNPIN = "unpin"
    UNLOAD = "unload"
    REMOVE = "remove"
    IMPORT = "import"
    POLL = "poll"
    """List storage again now."""


@dataclass(frozen=True, kw_only=True)
class AdapterCommand:
    """Carry out an action on one adapter, and report on all of them."""

    id: str
    action: AdapterAction
    deadline: float
    """On ``time.monotonic``'s clock. Afterwards the command is dropped, because no client waits for its reply."""
    name: str = ""
    path: str = ""
    """The file or directory to import."""
    replace: bool = False
    """Allow an import to become a new version of an existing name."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The engine's step loop runs: sent to the engine's mailbox about once a second, whether there is work or not."""

    step_seconds: float
    """The longest pass of the loop since the last heartbeat."""
    steps_left: Mapping[str, int]
    """Steps that are left of all images of a request, by the id of its command."""
    adapters: tuple[str, ...]
    """``name@version`` of the adapters in slots."""


def engine_mailbox(number: int) -> str:
    """Return the mailbox of messages about an engine process itself: ``Heartbeat``, and None when it has ended."""
    return f"engine {number}"


Command = GenerateCommand | CancelCommand | AdapterCommand


def _problem(fields: object) -> object:
    return Problem.from_json(fields) if isinstance(fields, Mapping) else fields


WireProblem = Annotated[
    Problem,
    PlainValidator(_problem, json_schema_input_type=dict[str, Any]),
    PlainSerializer(Problem.to_json, return_type=dict[str, Any]),
]
"""A problem as a JSON object, from which other processes translate it."""


class AdapterState(StrEnum):
    """The version that a request for a name gets."""

    READY = "ready"
    """The newest version is served."""
    OUTDATED = "outdated"
    """An older version is served: the newest was rejected, or is incomplete in storage."""
    REFUSED = "refused"
    """No version is served, because none has passed verification."""
    UNLOADED = "unloaded"
    """No version is served until a command loads the adapter again."""


class AdapterStatus(BaseModel):
    """The state of one name."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: AdapterState
    desired_version: int | None
    """The version that ``latest`` names."""
    version: int | None
    """The version that is served."""
    verified: bool
    """True once its weights have been downloaded and verified; before that, only its manifest has."""
    sha256: str | None
    rank: int | None
    modules: int | None
    """Layers of the model that the adapter changes."""
    trigger_words: tuple[str, ...]
    sampling: Sampling | None = None
    """Steps and guidance of requests that name it and give none; None: the model's."""
    created: datetime | None
    """Time at which the served version was published."""
    pinned: bool
    reason: str | None
    """The problem for which the desired version is not served, in English."""
    problem: WireProblem | None = None
    """The same problem with its code, for translation."""
    last_used_seconds_ago: float | None
    requests: int


class SlotStatus(BaseModel):
    """A slot in use."""

    model_config = ConfigDict(frozen=True)

    adapter: str
    """``name@version``."""
    device: str
    """The device of the slot."""
    pictures: int
    """Images being denoised with it."""


class AdapterReport(BaseModel):
    """The body of ``GET /v1/adapters``."""

    model_config = ConfigDict(frozen=True)

    storage: str
    reachable: bool | None
    """None before the first listing of storage."""
    slots: int
    """The number of slots of all devices together."""
    slots_used: tuple[SlotStatus, ...]
    """Ordered by device, then with the least recently used slot first."""
    adapters: tuple[AdapterStatus, ...]


class DeviceUsage(BaseModel):
    """The use of a server."""

    model_config = ConfigDict(frozen=True)

    requests: Annotated[int, Field(description="Requests that the engine has ended, however they ended.")] = 0
    pictures: Annotated[int, Field(description="Pictures of requests that succeeded.")] = 0
    pixel_steps: Annotated[
        int,
        Field(
            description="Width x height x steps made, twice with guidance and with a reference; also of failed requests."
        ),
    ] = 0
    device_seconds: Annotated[
        float,
        Field(description="Its share of the steps' time, by rows, and the time of encoding prompts and decoding."),
    ] = 0.0

    def __add__(self, other: "DeviceUsage") -> "DeviceUsage":
        """Return the use of both."""
        return DeviceUsage(**{name: getattr(self, name) + getattr(other, name) for name in DeviceUsage.model_fields})


class KeyUsage(DeviceUsage):
    """The use by one key, on one day, of one model."""

    key: Annotated[str | None, Field(description="Name of the API key; null on a server without keys.")]
    day: Annotated[date, Field(description="In UTC, on which the requests ended.")]
    model: str


class UsageReport(BaseModel):
    """The body of ``GET /v1/usage``."""

    model_config = ConfigDict(frozen=True)

    usage: tuple[KeyUsage, ...]
    total: DeviceUsage

    @classmethod
    def of(cls, usage: tuple[KeyUsage, ...]) -> Self:
        """Return rows with their sum."""
        return cls(usage=usage, total=sum(usage, start=DeviceUsage()))


Reply = Event | AdapterReport
"""A reply that is none of the events before a final one is the last to a command."""
