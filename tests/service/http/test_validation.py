"""Requests that ``POST /generate`` refuses: each error names the field, the value and the remedy."""

import json
import re

import httpx
import pytest

from tests.service.http.replies import APPLE, problem


@pytest.mark.parametrize(
    ("change", "field", "value", "remedy"),
    [
        ({"widht": 64}, "widht", "64", "did you mean 'width'?"),
        ({"colour": "red"}, "colour", "red", "known fields: prompt, negative_prompt"),
        ({"width": 100}, "width", "100", "give a multiple of 64, such as 128"),
        ({"height": 0}, "height", "0", "give at least 64"),
        ({"width": 512, "height": 512}, "width", "512", "give at most 256 x 256"),
        ({"width": "128"}, "width", "128", "give a whole number, without quotes"),
        ({"width": 128.5}, "width", "128.5", "give a whole number"),
        ({"steps": 0}, "steps", "0", "give at least 1"),
        ({"steps": 101}, "steps", "101", "give at most 100"),
        ({"steps": True}, "steps", "true", "give a whole number"),
        ({"num_images": 9}, "num_images", "9", "give at most 8"),
        ({"guidance_scale": "high"}, "guidance_scale", "high", "give a number, without quotes"),
        ({"guidance_scale": -1}, "guidance_scale", "-1", "give at least 0"),
        ({"guidance_scale": 1000}, "guidance_scale", "1000", "give at most 30"),
        ({"seed": -1}, "seed", "-1", "give at least 0"),
        ({"seed": 2**63}, "seed", str(2**63), "give at most"),
        ({"seed": 2**63 - 1, "num_images": 2}, "seed", str(2**63 - 1), "give a smaller seed"),
        ({"prompt": ""}, "prompt", "", "give some text"),
        ({"prompt": " \u3000\n"}, "prompt", " \u3000\n", "give some text"),
        ({"adapters": [5]}, "adapters.0", "5", 'give "ink" or {"name": "ink"'),
        ({"adapters": [{"nam": "ink"}]}, "adapters.0.name", None, "add it"),
        ({"prompt": None}, "prompt", None, "give a string"),
        ({"prompt": "猫" * 33}, "prompt", "猫" * 33, "shorten it by at least 1 tokens"),
        ({"negative_prompt": "'" + "x" * 40 + "'"}, "negative_prompt", "'" + "x" * 40 + "'", "shorten it by at least 10"),
        ({"output_format": "gif"}, "output_format", "gif", "give 'png', 'jpeg' or 'webp'"),
        ({"response_format": "xml"}, "response_format", "xml", "give 'binary' or 'json'"),
        ({"cfg_renorm": "yes"}, "cfg_renorm", "yes", "give true or false"),
        ({"rewrite_prompt": True}, "rewrite_prompt", "true", "give false, or serve flavour final"),
    ],
)  # fmt: skip
def test_bad_input_names_the_field_the_value_and_the_remedy(
    client: httpx.Client, change: dict[str, object], field: str, value: str | None, remedy: str
) -> None:
    found = problem(client.post("/generate", json=APPLE | change), field)
    assert found["value"] == value
    assert remedy in found["remedy"]


def test_every_wrong_field_is_named_at_once(client: httpx.Client) -> None:
    error = client.post("/generate", json={"steps": 0, "width": 65}).json()["error"]
    assert {p["field"] for p in error["problems"]} == {"prompt", "steps", "width"}
    assert error["message"] == (
        "prompt: missing; add it. steps = 0: too small; give at least 1. "
        "width = 65: not a multiple of 64; give a multiple of 64, such as 64"
    )


def test_a_picture_that_is_too_large_is_refused_by_its_longer_side(client: httpx.Client) -> None:
    for field in ("width", "height"):
        found = problem(client.post("/generate", json=APPLE | {field: 64 * 1000}), field)
        assert (found["code"], found["value"]) == ("too_many_pixels", "64000")


def test_a_time_limit_beyond_the_servers_is_refused(client: httpx.Client) -> None:
    for path, status in (("/generate", 422), ("/v1/images/generations", 400)):
        reply = client.post(path, json={"prompt": "a cat", "timeout_seconds": 1e9})
        assert reply.status_code == status
        assert reply.json()["error"]["message"] == (
            "timeout_seconds = 1000000000.0: more than the 600 that this server allows; give at most 600"
        )
    assert client.post("/generate", json=APPLE | {"timeout_seconds": 600}).status_code == 200


@pytest.mark.parametrize("prompt", ["   ", "\n", "\u3000"])
def test_a_blank_prompt_is_shown_in_quotes(client: httpx.Client, prompt: str) -> None:
    message = client.post("/generate", json={"prompt": prompt}).json()["error"]["message"]
    assert message == f"prompt = {json.dumps(prompt)}: blank; give some text"


def test_no_class_of_ours_is_in_an_error(client: httpx.Client) -> None:
    for body in ([], {"prompt": "a cat", "adapters": [5]}, {"prompt": "a cat", "adapters": [{}] * 9}):
        text = client.post("/generate", json=body).text
        assert "give" in text
        assert not re.search(r"class_name|AdapterChoice|GenerateRequest|Tuple", text), text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client: httpx.Client, number: str) -> None:
    body = f'{{"prompt": "cat", "guidance_scale": {number}}}'
    assert "finite" in problem(client.post("/generate", content=body), "guidance_scale")["remedy"]


@pytest.mark.parametrize("body", [b"", b"{nope", b"\xff\xfe", b'{"prompt": "\\ud800"}', b'{"\\ud800": 1}', b"[" * 5000])
def test_what_is_not_json_is_a_bad_request(client: httpx.Client, body: bytes) -> None:
    reply = client.post("/generate", content=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == "not_json"


@pytest.mark.parametrize("body", ["[]", '"a red apple"', "3", "null"])
def test_json_that_is_no_object_is_refused(client: httpx.Client, body: str) -> None:
    assert "give a JSON object" in problem(client.post("/generate", content=body), "body")["remedy"]


def test_a_body_over_the_limit_is_refused_however_it_is_sent(client: httpx.Client) -> None:
    large = json.dumps({"prompt": "x" * 70_000}).encode()
    for content in (large, iter([large[:40_000], large[40_000:]])):
        reply = client.post("/generate", content=content)
        assert reply.status_code == 413
        assert "exceeds 65536 bytes" in reply.json()["error"]["message"]
