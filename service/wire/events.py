"""The events of a request: one vocabulary for the engine, the queue between the processes, the HTTP stream and the client.

A request has an ``AcceptedEvent`` if it is streamed, any number of ``StepEvent`` and ``PreviewEvent``, then one
``ResultEvent`` or ``ErrorEvent``. No torch.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from longcat.errors import LithographError
from service.wire.schema import AppliedAdapter, ResolvedRequest, Timings


def _decode(value: object) -> object:
    return base64.b64decode(value) if isinstance(value, str) else value


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


Base64File = Annotated[
    bytes,
    BeforeValidator(_decode),
    PlainSerializer(_encode, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    Field(alias="b64", repr=False, description="The file in base64."),
]
"""A file's bytes: as they are between the processes, base64 under the name ``b64`` in JSON."""

_CONFIG = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


class Picture(BaseModel):
    """One picture file."""

    model_config = _CONFIG

    seed: int
    content: Base64File

    def save(self, path: str | Path) -> None:
        """Write the file."""
        Path(path).write_bytes(self.content)


@dataclass(frozen=True)
class AcceptedEvent:
    """The adapters of a request are available, and the request is valid. HTTP does not send this event."""


class StepEvent(BaseModel):
    """A denoising step of one image is done."""

    model_config = _CONFIG
    name: ClassVar[str] = "progress"
    """The name of the server-sent event, as in every class here."""

    image: int
    step: Annotated[int, Field(description="From 1.")]
    steps: int


class PreviewEvent(BaseModel):
    """A small JPEG of an unfinished image. A slow decoder makes fewer previews, not a queue."""

    model_config = _CONFIG
    name: ClassVar[str] = "preview"

    image: int
    step: int
    media_type: str = "image/jpeg"
    content: Base64File


class ResultEvent(BaseModel):
    """The pictures of a request, in the order of their seeds. The last event, and the body of a JSON response."""

    model_config = _CONFIG
    name: ClassVar[str] = "result"

    request_id: str
    model_hash: str
    prompt: Annotated[str, Field(description="The prompt as denoised: the rewritten one with rewrite_prompt.")]
    request: ResolvedRequest
    adapters: tuple[AppliedAdapter, ...]
    timings: Timings
    media_type: str
    images: tuple[Picture, ...]


@dataclass(frozen=True)
class ErrorEvent:
    """The error that ended a request. In HTTP its data is an error body."""

    error: LithographError
    name: ClassVar[str] = "error"


SentEvent = StepEvent | PreviewEvent | ResultEvent | ErrorEvent
"""The events that a stream sends to a client."""
Event = AcceptedEvent | SentEvent
FINAL = (ResultEvent, ErrorEvent)
"""Events that end a request."""
