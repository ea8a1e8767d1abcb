"""The lines of a batch: reading and checking its file, and writing its results."""

import json
import threading
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from longcat.errors import UserError
from longcat.validation import MOST_PROBLEMS, validated
from service.http.jobs.batches.schema import BatchError, BatchLine, Endpoint
from service.http.requests.json_body import NotJsonError, parse_json

ENVELOPE_BYTES = 4096
"""Most bytes of a line beside its body."""
_MOST_ADAPTERS = 1000
"""Most names of adapters that are kept of one batch."""


@dataclass(kw_only=True)
class InputFile:
    """A batch's file, whose lines are read one at a time."""

    file: BinaryIO
    endpoint: Endpoint
    max_line_bytes: int
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    """The place of each request in the file. Blank lines have none."""
    problems: list[BatchError] = field(default_factory=list)
    more_problems: int = 0
    adapters: set[str] = field(default_factory=set)
    """Names of adapters that its lines may mean."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a thread reads at a place of the file."""

    def line(self, i: int) -> tuple[BatchLine, int]:
        """Return request ``i`` and the bytes of its line. Call it in a thread: a line may hold pictures."""
        with self.lock:
            self.file.seek(self.offsets[i])
            content = self.file.readline()
        return _parsed(content, self.endpoint), len(content)

    def check(self, *, max_lines: int) -> None:
        """Find the requests, and the problems of all lines. Call it in a thread."""
        seen: dict[str, int] = {}
        for number, offset, content in self._lines():
            if (len(self.offsets) == max_lines and content.strip()) or number > 2 * max_lines:
                self._note(
                    UserError(
                        "batch_too_many_lines",
                        "more than {max_lines} requests, or twice as many lines",
                        remedy="split them into several batches, or start the server with a higher --max-batch-lines",
                        max_lines=max_lines,
                    ),
                    number,
                )
                break
            if not content.strip():
                continue
            self.offsets.append(offset)
            try:
                line = self._checked(content)
                if (first := seen.setdefault(line.custom_id, number)) != number:
                    raise UserError(
                        "batch_custom_id_twice",
                        "line {first} has the same one",
                        remedy="give each line its own",
                        field="custom_id",
                        value=line.custom_id,
                        first=first,
                    )
            except UserError as error:
                self._note(error, number)
        if not self.offsets:
            self._note(
                UserError("batch_without_lines", "the file has no requests", remedy="write one request a line"), None
            )
        if self.more_problems:
            more = UserError("more_problems", "and {count} more", count=self.more_problems)
            self.problems.append(BatchError(code=more.problems[0].code, message=str(more)))

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the number, the place and the content of all lines; too long ones are cut."""
        self.file.seek(0)
        number = 0
        while True:
            offset = self.file.tell()
            if not (content := self.file.readline(self.max_line_bytes + 1)):
                return
            number += 1
            rest = content
            while rest and not rest.endswith(b"\n") and len(content) > self.max_line_bytes:
                rest = self.file.readline(self.max_line_bytes)
            yield number, offset, content

    def _checked(self, content: bytes) -> BatchLine:
        if len(content) > self.max_line_bytes:
            raise UserError(
                "batch_line_too_long",
                "more than {max_bytes} bytes",
                remedy="shorten the prompt, or send smaller pictures",
                max_bytes=self.max_line_bytes,
            )
        line = _parsed(content, self.endpoint)
        for name in _names(line.body):
            if len(self.adapters) < _MOST_ADAPTERS:
                self.adapters.add(name)
        return line

    def _note(self, error: UserError, number: int | None) -> None:
        for problem in error.problems:
            if len(self.problems) >= MOST_PROBLEMS:
                self.more_problems += 1
                continue
            message = str(UserError.of([problem]))
            self.problems.append(
                BatchError(code=problem.code, message=message, param=problem.field or None, line=number)
            )


def _parsed(content: bytes, endpoint: Endpoint) -> BatchLine:
    try:
        value = parse_json(content)
    except NotJsonError as error:
        reason = error.problems[0].details.get("reason") or str(error)
        raise UserError(
            "batch_line_not_json", "not JSON: {reason}", remedy="write one JSON object a line, in UTF-8", reason=reason
        ) from error
    line = validated(BatchLine, value)
    if line.url != endpoint:
        raise UserError(
            "batch_line_other_url",
            "not the endpoint of the batch",
            remedy="give {endpoint} in each line, or make the batch for the other endpoint",
            field="url",
            value=line.url,
            endpoint=endpoint,
        )
    return line


def _names(body: dict[str, Any]) -> Iterator[str]:
    """Yield what may be names of adapters in a body that is not checked yet."""
    given = body.get("adapters")
    choices = given if isinstance(given, list) else []
    names = (choice.get("name") if isinstance(choice, dict) else choice for choice in choices)
    yield from (name for name in (body.get("model"), *names) if isinstance(name, str))


def result_line(
    *, request_id: str, custom_id: str, status: int | None = None, body: Any = None, error: BatchError | None = None
) -> bytes:
    """Return the line of a result: a reply with its status and its body, or an error without a reply."""
    response = None if status is None else {"status_code": status, "request_id": request_id, "body": body}
    shown = None if error is None else {"code": error.code, "message": error.message}
    line = {"id": request_id, "custom_id": custom_id, "response": response, "error": shown}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"
