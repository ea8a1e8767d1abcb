"""What the HTTP process and the engine process say to each other. No torch: the HTTP process has none."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from longcat.errors import LithographError
from service.picture import Rendered
from service.schema import ResolvedRequest


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Draw a request."""

    id: str
    request: ResolvedRequest
    submitted_at: float
    deadline: float
    """Both on ``time.monotonic``'s clock, which the processes of one machine share."""
    progress: bool = False
    """Whether every step is told."""
    previews: int = 0
    """Most small pictures of one picture on its way."""
    trace: Mapping[str, str] | None = None
    """W3C's headers of the span that what is done for it belongs to; None if nobody will look."""

    @property
    def trace_id(self) -> str | None:
        """The trace that it is part of."""
        return None if self.trace is None else self.trace["traceparent"].split("-")[1]


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """Nobody waits for a request any more."""

    id: str


class AdapterAction(StrEnum):
    """What can be done about an adapter while serving."""

    LIST = "list"
    LOAD = "load"
    PIN = "pin"
    UNPIN = "unpin"
    UNLOAD = "unload"
    REMOVE = "remove"
    IMPORT = "import"


@dataclass(frozen=True, kw_only=True)
class AdapterCommand:
    """Do something about an adapter, and report on all of them."""

    id: str
    action: AdapterAction
    name: str = ""
    path: str = ""
    """What to import."""
    replace: bool = False
    """Whether an import may be a new version of a name that is there."""


Command = Draw | Cancel | AdapterCommand


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of one picture is made."""

    image: int
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class PreviewFile:
    """A small JPEG of what a picture was becoming after a step."""

    image: int
    step: int
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What a request came to that could not be done."""

    status: int
    """HTTP's."""
    code: str
    message: str
    retry_after_seconds: int | None = None


class RefusedError(LithographError):
    """What ``Failed`` says, as an exception."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class AdapterState(StrEnum):
    """What a request for a name gets."""

    READY = "ready"
    """The newest version."""
    OUTDATED = "outdated"
    """The version before: the newest is refused, or not whole yet."""
    REFUSED = "refused"
    """Nothing: no version has been good."""
    UNLOADED = "unloaded"
    """Nothing, until somebody loads it again."""


class AdapterStatus(BaseModel):
    """One name."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: AdapterState
    desired_version: int | None
    """What ``latest`` says."""
    version: int | None
    """What is served."""
    sha256: str | None
    rank: int | None
    modules: int | None
    """Layers of the model that it changes."""
    trigger_words: tuple[str, ...]
    created: datetime | None
    """Of the version that is served."""
    pinned: bool
    reason: str | None
    """Why the desired version is not served."""
    last_used_seconds_ago: float | None
    requests: int


class SlotStatus(BaseModel):
    """A slot that is taken."""

    model_config = ConfigDict(frozen=True)

    adapter: str
    """``name@version``."""
    pictures: int
    """That are being drawn with it."""


class AdapterReport(BaseModel):
    """The body of ``GET /v1/adapters``."""

    model_config = ConfigDict(frozen=True)

    storage: str
    reachable: bool | None
    """None before the first look."""
    slots: int
    slots_used: tuple[SlotStatus, ...]
    """Least recently used first."""
    adapters: tuple[AdapterStatus, ...]


Reply = Rendered | Step | PreviewFile | Failed | AdapterReport
"""All but ``Step`` and ``PreviewFile`` are the last word on a request."""
