"""The real ``openai`` client over two servers with one storage: whole batches, keys, kill -9, cancellation, expiry."""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from service.access.keys import ApiKeys, make_key
from tests.conftest import RunningServer, serve
from tests.service.family import Family
from tests.service.http.replies import metric
from tests.service.http.test_editing import PHOTO, b64

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
OVER = ("completed", "failed", "cancelled", "expired")
SECONDS = 240
"""Longest wait, on a machine that is busy with other work."""
Connect = Callable[[RunningServer, str], openai.OpenAI]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def options(folder: Path, secrets: dict[str, str]) -> tuple[str, ...]:
    assert secrets
    return (
        "--jobs-storage", (folder / "jobs").as_uri(), "--jobs-lease-seconds", "2", "--max-batch-bytes", "200000",
        "--api-keys-file", str(folder / "keys.json"), "--metrics-key", "none",
    )  # fmt: skip


@pytest.fixture(scope="module")
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


def test_a_batch_is_what_its_requests_are_one_by_one(server: RunningServer, connect: Connect) -> None:
    ai = connect(server, "team-a")
    own = {"prompt": "一只猫", "n": 2, "seed": 3, "steps": 2, "model": "turbo", "output_format": "webp"}
    wrong = [
        {"prompt": "a cat", "size": "7x9"}, {"prompt": "a cat", "model": "missing"}, {"prompt": "a cat", "stream": True},
        {"prompt": "a cat", "a" * 99: [[[]]]}, {},
    ]  # fmt: skip
    batch = start(ai, jsonl({"prompt": "a red apple", "steps": 2}, own, *wrong))
    assert (batch.status, batch.object, batch.endpoint) == ("validating", "batch", GENERATIONS)
    assert batch.expires_at == batch.created_at + 24 * 3600
    done = wait(ai, batch)
    assert (done.status, done.metadata, done.errors) == ("completed", {"for": "猫"}, None)
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (7, 2, 5)
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert times == sorted(times, key=lambda at: at or 0)

    output, errors = lines_of(ai, done.output_file_id), lines_of(ai, done.error_file_id)
    assert list(output) == ["line 0", "line 1"], "in the order of the file"
    direct = ai.images.generate(
        prompt="一只猫", n=2, model="turbo", output_format="webp", extra_body={"seed": 3, "steps": 2}
    )
    assert pictures(output["line 1"]) == [base64.b64decode(image.b64_json or "") for image in direct.data or []]
    assert output["line 1"]["id"] == output["line 1"]["response"]["request_id"]
    assert f'"request_id": "{output["line 1"]["id"]}"' in server.log_text()
    params = [errors[f"line {i}"]["response"]["body"]["error"]["param"] for i in range(2, 7)]
    assert params == ["size", "model", "stream", "a" * 99, "prompt"]
    assert {errors[f"line {i}"]["response"]["status_code"] for i in (2, 4, 5, 6)} == {400}
    assert errors["line 3"]["response"]["body"]["error"]["code"] == "model_not_found"


def test_files_and_batches_are_listed_in_pages_and_deleted(server: RunningServer, connect: Connect) -> None:
    ai = connect(server, "boss")
    content = jsonl({"prompt": "a cat", "steps": 1})
    file = ai.files.create(
        file=("行.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.bytes, file.filename, file.status) == (len(content), "行.jsonl", "processed")
    assert file.expires_at == file.created_at + 3600
    assert ai.files.content(file.id).content == content
    assert [each.id for each in ai.files.list(purpose="batch", limit=1).data] == [file.id], "the newest"
    ids = [each.id for each in ai.files.list(order="asc", limit=2)]
    assert ids == sorted(ids)
    assert ids[-1] == file.id, "through all pages"
    batches = [wait(ai, start(ai, content)) for _ in range(3)]
    assert [each.id for each in ai.batches.list(limit=2)][:3] == [batch.id for batch in reversed(batches)]
    last = batches[-1]
    assert last.output_file_id is not None
    assert ai.files.delete(last.output_file_id).deleted
    with pytest.raises(openai.NotFoundError, match="no such file"):
        ai.files.content(last.output_file_id)
    assert ai.batches.retrieve(last.id).status == "completed"
    with pytest.raises(openai.ConflictError, match="completed"):
        ai.batches.cancel(last.id)


def test_the_asynchronous_client_edits_pictures(server: RunningServer, secrets: dict[str, str]) -> None:
    async def check() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=secrets["team-a"], max_retries=0) as ai:
            body = {"prompt": "a red apple", "image": b64(PHOTO), "seed": 1, "steps": 3}
            file = await ai.files.create(file=jsonl(body, {"prompt": "no picture"}, url=EDITS), purpose="batch")
            batch = await ai.batches.create(input_file_id=file.id, endpoint=EDITS, completion_window="24h")
            async with asyncio.timeout(SECONDS):
                while batch.status not in OVER:
                    await asyncio.sleep(0.1)
                    batch = await ai.batches.retrieve(batch.id)
            assert batch.output_file_id is not None
            line = json.loads((await ai.files.content(batch.output_file_id)).text)
            direct = await ai.images.edit(image=PHOTO, prompt="a red apple", extra_body={"seed": 1, "steps": 3})
            assert direct.data is not None
            assert pictures(line) == [base64.b64decode(direct.data[0].b64_json or "")]
            assert batch.request_counts is not None
            assert batch.request_counts.failed == 1

    asyncio.run(check())


def test_a_key_has_its_own_files_batches_and_adapters(server: RunningServer, connect: Connect) -> None:
    one, other, boss = connect(server, "team-a"), connect(server, "team-b"), connect(server, "boss")
    content = jsonl({"prompt": "a cat", "model": "turbo"}, {"prompt": "a cat", "steps": 1})
    file = one.files.create(file=content, purpose="batch")
    for call in (
        lambda: other.files.retrieve(file.id),
        lambda: other.files.content(file.id),
        lambda: other.files.delete(file.id),
        lambda: other.batches.create(input_file_id=file.id, endpoint=GENERATIONS, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError, match="no such file"):
            call()
    assert not list(other.files.list())
    assert boss.files.retrieve(file.id).id == file.id
    batch = wait(other, start(other, content))
    for name in ("retrieve", "cancel"):
        with pytest.raises(openai.NotFoundError, match="no such batch"):
            getattr(one.batches, name)(batch.id)
    assert batch.id not in [each.id for each in one.batches.list()]
    assert boss.batches.retrieve(batch.id).id == batch.id
    errors = lines_of(other, batch.error_file_id)
    assert errors["line 0"]["response"]["status_code"] == 403
    assert list(lines_of(other, batch.output_file_id)) == ["line 1"]
    with pytest.raises(openai.PermissionDeniedError, match="role generate"):
        connect(server, "adapters").files.create(file=content, purpose="batch")


def test_a_file_with_wrong_lines_fails_before_anything_is_generated(server: RunningServer, connect: Connect) -> None:
    ai = connect(server, "team-a")
    twice = jsonl({"prompt": "a cat"}) + b"\n" + jsonl({"prompt": "a cat"}) + b"\n\xff\n"
    batch = wait(ai, start(ai, twice))
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert [(e.line, e.code, e.param) for e in batch.errors.data or []] == [
        (2, "batch_custom_id_twice", "custom_id"), (3, "batch_line_not_json", None),
    ]  # fmt: skip
    other = wait(ai, start(ai, jsonl({"prompt": "a cat"}), endpoint=EDITS))
    assert other.errors is not None
    assert [e.code for e in other.errors.data or []] == ["batch_line_other_url"]


def test_requests_that_are_wrong_name_the_field(server: RunningServer, secrets: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {secrets['team-a']}"}
    with httpx.Client(base_url=server.url, timeout=SECONDS, headers=headers) as http:

        def refused(reply: httpx.Response, status: int) -> tuple[str | None, str]:
            assert reply.status_code == status, reply.text
            return reply.json()["error"]["param"], reply.json()["error"]["message"]

        def upload(status: int, content: bytes = b"{}", **fields: str) -> str | None:
            return refused(http.post("/v1/files", files={"file": ("a", content)}, data=fields), status)[0]

        assert upload(400) == "purpose"
        assert upload(400, purpose="fine-tune") == "purpose"
        assert upload(400, b"", purpose="batch") == "file"
        assert upload(413, b"x" * 200_001, purpose="batch") == "file"
        assert upload(413, b"x" * 400_000, purpose="batch") == "file"
        assert upload(400, purpose="batch", other="x") == "other"
        assert upload(400, purpose="batch", expires_after='{"anchor": "created_at", "seconds": 1}') == "seconds"
        assert refused(http.post("/v1/files", json={"purpose": "batch"}), 400)[0] == "body"
        assert refused(http.post("/v1/files", data={"purpose": "batch"}, files={"x": b"1"}), 400)[0] == "x"
        form = {"Content-Type": "multipart/form-data; boundary=x"}
        for content in (b"", b"--x", b"--x\r\n\r\n", b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc'):
            refused(http.post("/v1/files", content=content, headers=form), 400)

        body = {"input_file_id": "file-1", "endpoint": GENERATIONS, "completion_window": "24h"}
        for change, status, param in (
            ({}, 404, "input_file_id"),
            ({"input_file_id": "../../requests/x"}, 404, "input_file_id"),
            ({"endpoint": "/v1/chat/completions"}, 400, "endpoint"),
            ({"completion_window": "1h"}, 400, "completion_window"),
            ({"metadata": {"a": 1}}, 400, "metadata.a"),
            ({"metadata": {str(i): "" for i in range(17)}}, 400, "metadata"),
            ({"other": 1}, 400, "other"),
        ):
            assert refused(http.post("/v1/batches", json=body | change), status)[0] == param
        for path in ("/v1/files?limit=0", "/v1/files?order=up", "/v1/batches?limit=101", "/v1/batches?after=batch_1"):
            assert refused(http.get(path), 400)[0] in ("limit", "order", "after")
        assert refused(http.get("/v1/batches/..%5c..%5cx"), 404)[1].count("no such batch")
        assert http.get("/v1/files/..%2fbatches/content").status_code == 404


def test_a_file_may_come_in_the_smallest_chunks(server: RunningServer, secrets: dict[str, str]) -> None:
    content = jsonl({"prompt": "a cat"})
    form = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    reply = httpx.post(
        f"{server.url}/v1/files", content=(form[i : i + 1] for i in range(len(form))), timeout=SECONDS,
        headers={"Authorization": f"Bearer {secrets['team-a']}", "Content-Type": "multipart/form-data; boundary=x"},
    )  # fmt: skip
    assert reply.status_code == 200, reply.text
    assert reply.json()["bytes"] == len(content)


def test_batches_of_a_server_that_was_killed_go_on_are_cancelled_and_expire(
    folder: Path, options: tuple[str, ...], server: RunningServer, connect: Connect
) -> None:
    """The clock of the batch that expires is set in its record: its window is over when the second server takes it."""
    many = [{"prompt": "a red apple", "steps": 40, "model": "turbo"} for _ in range(6)]
    two = connect(server, "boss")
    Family(server).engine.suspend()  # it takes no batches: the first server gets all
    with serve(folder, *options) as first:
        one = connect(first, "boss")
        batches = [start(one, jsonl(*many)) for _ in range(3)]
        for batch in batches:
            wait(one, batch, lambda b: b.status == "in_progress")
        stored = folder / "jobs" / "batch-lines" / batches[0].id / "output"
        deadline = time.monotonic() + SECONDS
        while not (done := {path: path.read_bytes() for path in stored.glob("0*")}):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        Family(first).kill()
    Family(server).engine.resume()
    path = folder / "jobs" / "batches" / batches[2].id
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"expires_at": record["created_at"]}))
    assert two.batches.cancel(batches[1].id).status == "cancelling"
    with pytest.raises(openai.ConflictError, match="reads the file"):
        two.files.delete(batches[0].input_file_id)

    going_on, cancelled, expired = (wait(two, batch) for batch in batches)
    assert [batch.status for batch in (going_on, cancelled, expired)] == ["completed", "cancelled", "expired"]
    output = lines_of(two, going_on.output_file_id)
    assert list(output) == [f"line {i}" for i in range(6)]
    assert going_on.error_file_id is None
    assert {path: path.read_bytes() for path in done} == done, "what was stored is not generated again"
    line = output["line 5"]
    seed = line["response"]["body"]["data"][0]["seed"]
    direct = two.images.generate(prompt="a red apple", model="turbo", extra_body={"steps": 40, "seed": seed})
    assert pictures(line) == [base64.b64decode((direct.data or [])[0].b64_json or "")]
    for batch, code in ((cancelled, "batch_cancelled"), (expired, "batch_expired")):
        output, errors = lines_of(two, batch.output_file_id), lines_of(two, batch.error_file_id)
        assert output.keys() | errors.keys() == {f"line {i}" for i in range(6)}
        assert not output.keys() & errors.keys()
        assert {line["error"]["code"] for line in errors.values()} == {code}
        assert batch.request_counts is not None
        assert batch.request_counts.completed + batch.request_counts.failed == 6
    assert cancelled.cancelling_at is not None
    assert cancelled.cancelled_at is not None
    assert expired.expired_at is not None
    assert "never retrieved" not in server.log_text()
    with httpx.Client(base_url=server.url) as http:
        assert metric(http, "lithograph_batches_total", status="expired") == 1
        assert metric(http, "lithograph_batches_in_progress") == 0
