"""The bodies and replies of batches, for tests with the real ``openai`` client."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import openai
from openai.types import Batch

from tests.conftest import RunningServer

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
OVER = ("completed", "failed", "cancelled", "expired")
SECONDS = 240
"""Longest wait, on a machine that is busy with other work."""
Connect = Callable[[RunningServer, str], openai.OpenAI]


def jsonl(*bodies: dict[str, Any], url: str = GENERATIONS) -> bytes:
    lines = [{"custom_id": f"line {i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies)]
    return "\n".join(map(json.dumps, lines)).encode()


def start(ai: openai.OpenAI, content: bytes, endpoint: Any = GENERATIONS) -> Batch:
    file = ai.files.create(file=("lines.jsonl", content), purpose="batch")
    return ai.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"for": "猫"})


def wait(ai: openai.OpenAI, batch: Batch, until: Callable[[Batch], bool] = lambda b: b.status in OVER) -> Batch:
    deadline = time.monotonic() + SECONDS
    while not until(found := ai.batches.retrieve(batch.id)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def lines_of(ai: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """Return the lines of a file of results, of which no custom_id has two."""
    if file_id is None:
        return {}
    lines = [json.loads(line) for line in ai.files.content(file_id).text.splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def pictures(line: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(image["b64_json"]) for image in line["response"]["body"]["data"]]
