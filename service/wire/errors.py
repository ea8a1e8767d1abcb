"""Errors as the bodies of replies, and those of a service that cannot take or finish a request now. No torch.

After the latter, the same request may succeed later::

    UnavailableError
    ├── NotReadyError        the model is loading, restarting, or waiting for adapters
    ├── DrainingError        the server is shutting down
    ├── EngineEndedError     the engine process ended while the request was under way
    ├── EngineStalledError   the engine process hangs
    └── BusyError            the queue is full
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from longcat.errors import EngineError, LithographError
from longcat.problem import Problem, show
from longcat.storage.disk import disk_full, is_disk_full, path_of


class UnavailableError(LithographError):
    """The service cannot take or finish a request now."""

    code = "unavailable"
    retry_after_seconds: int = 1
    """Seconds after which to send the request again."""

    def after(self, seconds: int) -> Self:
        """Set ``retry_after_seconds``, and return the error."""
        self.retry_after_seconds = seconds
        return self


class NotReadyError(UnavailableError):
    """The model is not ready."""

    code = "not_ready"
    retry_after_seconds = 5

    def __init__(self) -> None:
        super().__init__(
            "not_ready", "the model is not ready", remedy="send the request again once GET /readyz returns 200"
        )


class DrainingError(UnavailableError):
    """The server is shutting down."""

    code = "draining"

    def __init__(self) -> None:
        super().__init__("draining", "the server is shutting down", remedy="send the request to another replica")


class EngineEndedError(UnavailableError):
    """The engine process ended while the request was under way."""

    code = "engine_ended"
    retry_after_seconds = 10

    def __init__(self) -> None:
        super().__init__(
            "engine_ended",
            "the engine process ended during the request and is restarting",
            remedy="send the request again",
        )


class EngineStalledError(UnavailableError):
    """The engine process neither makes denoising steps nor idles."""

    code = "engine_stalled"
    retry_after_seconds = 5

    def __init__(self, *, seconds: float) -> None:
        super().__init__(
            "engine_stalled",
            "the engine process has shown no progress for {seconds} s",
            remedy="send the request again once GET /readyz returns 200",
            seconds=round(seconds),
        )


class BusyError(UnavailableError):
    """The queue is full."""

    code = "busy"

    def __init__(self, *, requests: int) -> None:
        super().__init__(
            "busy",
            "{requests} requests are under way, and the queue is full",
            remedy="send the request again later",
            requests=requests,
        )


class RecordedError(LithographError):
    """An error that another process recorded: its code, its HTTP status and its problems."""

    http_status: int = 500


def wrapped(error: Exception) -> LithographError:
    """Return an error of ours as it is, a full disk as ``DiskFullError``, and any other exception as an ``EngineError``."""
    if isinstance(error, LithographError):
        return error
    if is_disk_full(error):
        return disk_full(path_of(error))
    failure = EngineError(
        "engine_failed",
        "{kind}: {reason}",
        remedy="look for the request in the server's log",
        kind=type(error).__name__,
        reason=str(error),
    )
    failure.__cause__ = error
    return failure


class ProblemBody(BaseModel):
    """One problem of a request, and its remedy."""

    model_config = ConfigDict(frozen=True)

    code: Annotated[str, Field(description="Stable identifier; translations use it.")]
    field: Annotated[str, Field(description="The wrong input: steps, adapters.0.name, body; empty for none.")]
    value: Annotated[str | None, Field(description="The value given, shortened; null if there was none.")]
    problem: str
    remedy: str
    details: Annotated[dict[str, Any], Field(description="Values in the two sentences, for translations.")] = {}

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Return the body of a problem."""
        details = {name: _plain(detail) for name, detail in problem.details.items()}
        value = None if problem.value is None else show(problem.value)
        return cls(
            code=problem.code, field=problem.field, value=value, problem=problem.problem, remedy=problem.remedy,
            details=details,
        )  # fmt: skip

    def as_problem(self) -> Problem:
        """Return the problem with the sentences as its templates; a translation is filled from its details."""
        details = {
            n: ProblemBody(**d).as_problem() if isinstance(d, dict) and "problem" in d else d
            for n, d in self.details.items()
        }
        template, remedy = (text.replace("{", "{{").replace("}", "}}") for text in (self.problem, self.remedy))
        return Problem(
            code=self.code,
            template=template,
            remedy_template=remedy,
            field=self.field,
            value=self.value,
            details=details,
        )


def _plain(detail: object) -> object:
    match detail:
        case Problem():
            return ProblemBody.of(detail).model_dump()
        case bool() | int() | float() | None:
            return detail
    return str(detail)


class ErrorDetail(BaseModel):
    """An error; its code determines the HTTP status."""

    code: str
    message: Annotated[str, Field(description="All problems as English sentences.")]
    request_id: Annotated[str, Field(description="The same id as in X-Request-Id and in the log.")] = ""
    problems: Annotated[list[ProblemBody], Field(min_length=1)]

    @classmethod
    def of(cls, error: LithographError, *, request_id: str = "") -> Self:
        """Return the body of an error."""
        problems = [ProblemBody.of(problem) for problem in error.problems]
        return cls(code=error.code, message=str(error), request_id=request_id, problems=problems)


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail
