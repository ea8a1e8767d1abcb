"""The request that tests of the HTTP service send, and readers of its replies."""

import io
from typing import Any

import httpx
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

APPLE = {"prompt": "a red apple", "seed": 1, "steps": 2}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def problem(reply: httpx.Response, field: str) -> dict[str, Any]:
    assert reply.status_code == 422, reply.text
    error = reply.json()["error"]
    assert error["request_id"] == reply.headers["x-request-id"]
    found = [p for p in error["problems"] if p["field"] == field]
    assert len(found) == 1, reply.text
    return found[0]


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())
