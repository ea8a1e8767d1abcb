"""A server without storage for jobs."""

import asyncio

from longcat.model.flavour import Flavour
from service.config import ModelConfig, ServiceConfig
from tests.service.http.in_process import http_client


def test_it_names_the_setting(flavour: Flavour) -> None:
    async def check() -> None:
        async with http_client(flavour, ServiceConfig(model=ModelConfig())) as http:
            for method, path in (
                ("POST", "/v1/files"), ("GET", "/v1/files"), ("GET", "/v1/files/file-1/content"), ("GET", "/v1/batches"),
                ("POST", "/v1/batches/batch_1/cancel"),
            ):  # fmt: skip
                error = (await http.request(method, path)).json()["error"]
                assert (error["code"], error["type"]) == ("no_jobs_storage", "invalid_request_error"), path
                assert "--jobs-storage" in error["message"]

    asyncio.run(check())
