from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from service.access.keys import ApiKeys, make_key
from tests.conftest import RunningServer, serve
from tests.service.http.jobs.batches.clients import SECONDS, Connect


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="package")
def secrets(folder: Path) -> dict[str, str]:
    """Keys by name, whose hashes are in the servers' file."""
    made = {
        "team-a": make_key("team-a", roles=["generate"], adapters=None, requests=2),
        "team-b": make_key("team-b", roles=["generate"], adapters=["team-b-*"]),
        "adapters": make_key("adapters", roles=["adapters"], adapters=None),
        "boss": make_key("boss", roles=["admin"], adapters=None),
    }
    (folder / "keys.json").write_text(ApiKeys(keys=tuple(key for _, key in made.values())).model_dump_json())
    return {name: secret for name, (secret, _) in made.items()}


@pytest.fixture(scope="package")
def options(folder: Path, secrets: dict[str, str]) -> tuple[str, ...]:
    assert secrets
    return (
        "--jobs-storage", (folder / "jobs").as_uri(), "--jobs-lease-seconds", "2", "--max-batch-bytes", "200000",
        "--api-keys-file", str(folder / "keys.json"), "--metrics-key", "none",
    )  # fmt: skip


@pytest.fixture(scope="package")
def server(folder: Path, options: tuple[str, ...]) -> Iterator[RunningServer]:
    with serve(folder, *options) as running:
        yield running


@pytest.fixture
def connect(secrets: dict[str, str]) -> Iterator[Connect]:
    made: list[openai.OpenAI] = []

    def client(server: RunningServer, name: str) -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key=secrets[name], max_retries=0, timeout=SECONDS))
        return made[-1]

    yield client
    for each in made:
        each.close()
