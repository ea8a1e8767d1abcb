"""The real ``openai`` client over two servers with one storage: whole batches, keys, kill -9, cancellation, expiry."""

import asyncio
import base64
import json
import time
from pathlib import Path

import httpx
import openai
import pytest

from tests.conftest import RunningServer, serve
from tests.service.family import Family
from tests.service.http.jobs.batches.clients import (
    EDITS,
    GENERATIONS,
    OVER,
    SECONDS,
    Connect,
    jsonl,
    lines_of,
    pictures,
    start,
    wait,
)
from tests.service.http.replies import metric
from tests.service.http.test_editing import PHOTO, b64


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
