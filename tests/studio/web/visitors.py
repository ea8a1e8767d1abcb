"""Addresses and requests of visitors."""

import httpx

HERE = "http://127.0.0.1:8001"
HTML = {"Accept": "text/html"}


def set_language(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post("/preferences", data={"language": "zh"}, headers=headers)
