"""Files of batches: uploads, pages of lists, and everything that is wrong with a request or a line."""

import httpx
import openai
import pytest

from tests.conftest import RunningServer
from tests.service.http.jobs.batches.clients import EDITS, GENERATIONS, SECONDS, Connect, jsonl, start, wait


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
