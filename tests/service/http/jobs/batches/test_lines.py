"""The files of batches as strangers may write them."""

import io
import json
from typing import Any

import pytest

from service.http.jobs.batches.lines import InputFile, result_line
from service.http.jobs.batches.schema import BatchError, Endpoint

GENERATIONS: Endpoint = "/v1/images/generations"
LONGEST = 2000


def line(custom_id: object = "a", **fields: Any) -> bytes:
    body = {"prompt": "a cat", "model": "ink", "adapters": ["turbo", {"name": "pencil"}]}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": GENERATIONS, "body": body} | fields).encode()


def checked(content: bytes, *, max_lines: int = 100) -> InputFile:
    source = InputFile(file=io.BytesIO(content), endpoint=GENERATIONS, max_line_bytes=LONGEST)
    source.check(max_lines=max_lines)
    return source


def test_requests_are_found_whatever_separates_them() -> None:
    source = checked(b"\xef\xbb\xbf" + line("a") + b"\r\n\n  \n" + line("猫") + b"\n" + line("c"))
    assert not source.problems
    assert [source.line(i)[0].custom_id for i in range(len(source.offsets))] == ["a", "猫", "c"]
    assert source.line(2)[1] == len(line("c"))
    assert source.adapters == {"ink", "turbo", "pencil"}


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"nothing of the kind", "batch_line_not_json", None),
        (b"\xff\xfe" + "{}".encode("utf-16-le"), "batch_line_not_json", None),
        ('{"custom_id": "苹果"}'.encode("gbk"), "batch_line_not_json", None),
        (b"[" * 1900, "batch_line_not_json", None),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "missing", "custom_id"),
        (b"\x1f\x8b\x08\x00", "batch_line_not_json", None),
        (b"[]", "model_type", None),
        (b"null", "model_type", None),
        (b"1e999", "model_type", None),
        (line(7), "string_type", "custom_id"),
        (line(None), "string_type", "custom_id"),
        (line(["a"]), "string_type", "custom_id"),
        (line(""), "string_too_short", "custom_id"),
        (line("a" * 513), "string_too_long", "custom_id"),
        (line(method="GET"), "literal_error", "method"),
        (line(url="/v1/images/edits"), "batch_line_other_url", "url"),
        (line(url="http://169.254.169.254/"), "batch_line_other_url", "url"),
        (line(body=[]), "dict_type", "body"),
        (line(body=None), "dict_type", "body"),
        (line(extra=1), "unknown_field_listed", "extra"),
        (line()[:-1] + b', "custom_id": "b"}', "body_field_twice", "body"),
        (line(body={"prompt": "x" * LONGEST}), "batch_line_too_long", None),
    ],
)  # fmt: skip
def test_a_line_that_is_no_request_is_named_by_its_number(content: bytes, code: str, param: str | None) -> None:
    source = checked(line("first") + b"\n\n" + content + b"\n" + line("last"))
    problems = [problem for problem in source.problems if problem.line == 3]
    assert (problems[0].code, problems[0].param) == (code, param), source.problems
    assert {problem.line for problem in source.problems} == {3}, "the lines around it are right"


def test_a_custom_id_names_one_line() -> None:
    (problem,) = checked(b"\n".join([line("a"), line("b"), line("a")])).problems
    assert (problem.code, problem.param, problem.line) == ("batch_custom_id_twice", "custom_id", 3)
    assert "line 1" in problem.message


def test_problems_are_bounded_and_counted() -> None:
    problems = checked(b"{}\n" * 50).problems
    assert len(problems) == 21
    assert problems[-1].code == "more_problems"
    assert str(50 * 4 - 20) in problems[-1].message


def test_a_file_has_between_one_request_and_the_most() -> None:
    assert [problem.code for problem in checked(b"\n \n").problems] == ["batch_without_lines"]
    many = b"\n".join(line(str(i)) for i in range(6))
    assert not checked(many, max_lines=6).problems
    (problem,) = checked(many, max_lines=5).problems
    assert (problem.code, problem.line) == ("batch_too_many_lines", 6)
    source = checked(line() + b"\n" * 100_000, max_lines=5)
    assert [(problem.code, problem.line) for problem in source.problems] == [("batch_too_many_lines", 11)], "blank ones"


def test_results_are_one_line_of_json_in_utf_8_whatever_the_custom_id() -> None:
    for custom_id in ("猫\n\u2028", "\ud800"):
        content = result_line(request_id="r", custom_id=custom_id, error=BatchError(code="batch_expired", message="m"))
        assert content.count(b"\n") == 1
        found = json.loads(content.decode())
        assert found["custom_id"] == custom_id
        assert (found["response"], found["error"]) == (None, {"code": "batch_expired", "message": "m"})
