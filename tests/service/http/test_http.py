"""``POST /generate`` and related endpoints on a real server with the embedded model."""

import base64
import io
import json
import os
import re
import signal
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from service.wire.picture import Recipe
from tests.conftest import RunningServer, run_lithograph, serve
from tests.service.family import Family

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


@pytest.mark.parametrize("prompt", ["一个红苹果", "a red apple"])
def test_either_language_gives_a_picture_of_a_red_apple(client: httpx.Client, prompt: str) -> None:
    reply = client.post("/generate", json={"prompt": prompt, "seed": 1})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "image/png"
    picture = pixels(reply.content)
    assert picture.shape == (128, 128, 3)
    middle, corner = picture[50:90, 45:85].mean((0, 1)), picture[:8, :8].mean((0, 1))
    assert middle[0] > 150 > 100 > max(middle[1], middle[2]), f"the middle is not red: {middle}"
    assert corner.min() > 215, f"the corner is not white: {corner}"


def test_a_reply_says_seed_model_and_timings_and_the_png_carries_its_recipe(client: httpx.Client) -> None:
    reply = client.post("/generate", json=APPLE | {"width": 192, "height": 64})
    info = client.get("/v1/info").json()
    assert reply.headers["x-seed"] == "1"
    assert reply.headers["x-model-hash"] == info["model"]["hash"]
    phases = {
        part.split(";dur=")[0]: float(part.split(";dur=")[1]) for part in reply.headers["server-timing"].split(", ")
    }
    assert phases.keys() == {"queue", "text", "denoise", "decode", "encode"}
    assert phases["denoise"] > 0
    image = Image.open(io.BytesIO(reply.content))
    assert image.size == (192, 64)
    recipe = Recipe.model_validate_json(image.info["lithograph"])
    assert (recipe.request.prompt, recipe.request.seed, recipe.request.steps) == ("a red apple", 1, 2)
    assert recipe.request.guidance_scale == info["defaults"]["guidance_scale"]
    assert recipe.model.hash == info["model"]["hash"]


def test_the_same_request_gives_the_same_bytes_and_no_seed_a_new_one(client: httpx.Client) -> None:
    first, second = (client.post("/generate", json=APPLE) for _ in range(2))
    assert first.content == second.content
    unseeded = [client.post("/generate", json={"prompt": "cat", "steps": 1}).headers["x-seed"] for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_json_carries_pictures_in_base64_with_what_made_them(client: httpx.Client) -> None:
    body = client.post("/generate", json=APPLE | {"response_format": "json", "num_images": 3}).json()
    assert [image["seed"] for image in body["images"]] == [1, 2, 3]
    assert body["media_type"] == "image/png"
    assert body["timings"]["denoise_seconds"] > 0
    assert body["request"]["steps"] == 2
    solo = client.post("/generate", json=APPLE | {"seed": 3})
    assert base64.b64decode(body["images"][2]["b64"]) == solo.content, "a picture depends on its batch"


def test_several_pictures_come_as_a_zip_named_by_seed(client: httpx.Client) -> None:
    reply = client.post("/generate", json=APPLE | {"num_images": 2, "output_format": "webp"})
    assert reply.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
        assert archive.namelist() == ["1.webp", "2.webp"]
        assert Image.open(io.BytesIO(archive.read("2.webp"))).format == "WEBP"


@pytest.mark.parametrize(("output_format", "media_type"), [("jpeg", "image/jpeg"), ("webp", "image/webp")])
def test_other_formats_show_the_same_picture(client: httpx.Client, output_format: str, media_type: str) -> None:
    png = client.post("/generate", json=APPLE)
    other = client.post("/generate", json=APPLE | {"output_format": output_format})
    assert other.headers["content-type"] == media_type
    assert np.abs(pixels(png.content) - pixels(other.content)).mean() < 6


def test_settings_matter(client: httpx.Client) -> None:
    base = client.post("/generate", json=APPLE).content
    changes = [
        {"negative_prompt": "red"}, {"steps": 3}, {"guidance_scale": 1.0}, {"guidance_scale": 6}, {"cfg_renorm": False},
        {"seed": 2},
    ]  # fmt: skip
    drawn = {client.post("/generate", json=APPLE | change).content for change in changes}
    assert len(drawn | {base}) == len(changes) + 1


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
        ({"adapters": ["ink"]}, "adapters.0", "ink", "give a JSON object"),
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
    for body in ([], {"prompt": "a cat", "adapters": ["ink"]}, {"prompt": "a cat", "adapters": [{}] * 9}):
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


def test_any_content_type_will_do(client: httpx.Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d sends
    assert client.post("/generate", content=json.dumps(APPLE), headers=form).status_code == 200


def test_unknown_paths_and_methods_answer_in_the_same_shape(client: httpx.Client) -> None:
    missing = client.get("/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert "there is no /nothing" in missing.json()["error"]["message"]
    reply = client.get("/generate")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST, OPTIONS")
    assert reply.json()["error"]["code"] == "method_not_allowed"
    assert reply.json()["error"]["message"] == "/generate does not take GET; use POST"


def test_operations_routes(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    info = client.get("/v1/info").json()
    assert info["model"] | {"hash": ""} == {
        "flavour": "embedded", "revision": None, "hash": "", "device": "cpu", "precision": "no_change",
        "text_encoder_precision": "no_change", "dtype": "float32",
    }  # fmt: skip
    assert info["limits"]["max_prompt_tokens"] == 32
    assert info["versions"].keys() >= {"lithograph", "torch", "diffusers", "litserve"}
    docs = client.get("/", follow_redirects=True)
    assert docs.url.path == "/docs"
    assert "http" not in docs.text.replace(str(client.base_url), ""), "the page loads something from elsewhere"
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert asset in docs.text
        assert client.get(f"/docs-assets/{asset}").status_code == 200
    operation = client.get("/openapi.json").json()["paths"]["/generate"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/GenerateRequest")
    assert set(operation["responses"]) >= {"200", "400", "413", "422", "503"}
    document = client.get("/openapi.json").json()
    assert {"prompt": "一个红苹果"} in document["components"]["schemas"]["GenerateRequest"]["examples"]
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))
    assert references
    for reference in references:
        reduce(lambda node, key: node[key], reference.split("/"), document)


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items())


def test_metrics_count_what_happens(client: httpx.Client) -> None:
    names = [("lithograph_requests_total", {"status": "200"}), ("lithograph_requests_total", {"status": "422"})]
    before = [metric(client, name, **labels) for name, labels in names] + [metric(client, "lithograph_pictures_total")]
    client.post("/generate", json=APPLE | {"num_images": 2})
    client.post("/generate", json=APPLE | {"steps": 0})
    after = [metric(client, name, **labels) for name, labels in names] + [metric(client, "lithograph_pictures_total")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 2]
    assert metric(client, "lithograph_phase_seconds_count", phase="denoise") >= 1
    assert metric(client, "lithograph_ready") == 1
    assert metric(client, "lithograph_model_info", flavour="embedded", precision="no_change") == 1


def test_requests_that_wait_are_counted_and_all_answered(client: httpx.Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(client.post, "/generate", json=APPLE | {"steps": 20, "seed": i}) for i in range(4)]
        deadline = time.monotonic() + 60
        while metric(client, "lithograph_requests_in_progress") < 2:
            assert time.monotonic() < deadline
        assert {reply.result().status_code for reply in replies} == {200}
    assert metric(client, "lithograph_requests_in_progress") == 0


def test_http_answers_while_the_model_loads_and_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    with serve(tmp_path, "--precision", "int8-torchao", "--dtype", "bfloat16", wait=False) as server:
        phases = []
        deadline = time.monotonic() + 120
        while (not phases or phases[-1] != "ready") and time.monotonic() < deadline:
            try:
                reply = httpx.get(f"{server.url}/readyz")
            except httpx.TransportError:
                continue
            phases.append(reply.json()["status"])
            assert (reply.status_code == 200) == (phases[-1] == "ready")
            if phases[-1] == "loading":
                early = httpx.post(f"{server.url}/generate", json=APPLE, timeout=60)
                assert early.status_code in (200, 503)
        assert phases[0] == "loading"
        assert phases[-1] == "ready"
        info = httpx.get(f"{server.url}/v1/info", timeout=60).json()["model"]
        assert (info["precision"], info["dtype"]) == ("int8-torchao", "bfloat16")
        assert httpx.post(f"{server.url}/generate", json=APPLE, timeout=60).status_code == 200
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert len(family) >= 3
        assert server.stop() == 0
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        lines = [line for line in server.log_text().splitlines() if '"request_' not in line]
        assert "starting embedded" in lines[0]
        assert "precision int8-torchao" in lines[0]
        starting, ready = (datetime.fromisoformat(json.loads(line)["time"]) for line in lines[:2])
        (seconds,) = re.findall(r"ready after ([0-9.]+) s:", lines[1])
        assert float(seconds) >= (ready - starting).total_seconds() - 0.1  # of the whole start, not of its last process
        assert "stopped, exit code 0" in lines[-1]
        assert "bfloat16 on cpu" in lines[1]
        assert server.url in lines[1]
        assert not [line for line in lines if "warn" in line.lower() or "Traceback" in line], server.log_text()


def test_a_model_that_cannot_load_ends_the_server_with_one_line_why(tmp_path: Path) -> None:
    with serve(tmp_path, "--offload", "model", wait=False) as server:
        assert server.process.wait(timeout=120) == 1
        assert "use none" in server.log_text()
        assert "Traceback" not in server.log_text()


def test_compile_without_a_compiler_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with serve(tmp_path, "--compile", wait=False) as server:
        assert server.process.wait(timeout=120) == 1
        assert "torch.compile needs a compiler for cpu, and none of g++" in server.log_text()
        assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0])
def test_a_server_can_be_stopped_while_it_starts(tmp_path: Path, seconds: float) -> None:
    with serve(tmp_path, wait=False) as server:
        time.sleep(seconds)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.stop()
        assert not psutil.wait_procs(family, timeout=60)[1]
        assert "Traceback" not in server.log_text(), server.log_text()
        assert "SIGKILL" not in server.log_text(), server.log_text()


def test_a_client_that_leaves_while_it_sends_is_no_error(server: RunningServer, client: httpx.Client) -> None:
    before = metric(client, "lithograph_requests_total", status="499")
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.5)
    deadline = time.monotonic() + 60
    while metric(client, "lithograph_requests_total", status="499") == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert metric(client, "lithograph_requests_total", status="499") == before + 1
    assert "ClientDisconnect" not in server.log_text()


def test_ctrl_c_ends_the_server_and_a_taken_port_is_named(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        port = server.url.rpartition(":")[2]
        second = run_lithograph("serve", "--port", port, cwd=tmp_path)
        assert second.returncode == 1
        problem = "cannot be bound on 127.0.0.1: Address already in use; give another with --port"
        assert f"error: port = {port}: {problem}" in second.stderr
        family = psutil.Process(server.process.pid).children(recursive=True)
        os.killpg(server.process.pid, signal.SIGINT)  # a terminal sends it to the whole group
        assert server.process.wait(timeout=60) == 0
        assert not psutil.wait_procs(family, timeout=60)[1]
        assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("victim", ["HTTP", "manager"])
def test_a_dead_process_ends_the_server_also_during_a_request(tmp_path: Path, victim: str) -> None:
    with serve(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        family = Family(server)
        processes = {"manager": family.manager, "HTTP": family.http}
        waiting = pool.submit(
            httpx.post, f"{server.url}/generate", json=APPLE | {"steps": 100, "num_images": 8}, timeout=60
        )
        time.sleep(1)
        begin = time.monotonic()
        processes[victim].kill()
        assert server.process.wait(timeout=60) == 1
        assert time.monotonic() - begin < 20
        assert f"the {victim} process ended" in server.log_text()
        assert isinstance(waiting.exception(), httpx.TransportError) or waiting.result().status_code == 500


def test_every_error_is_documented_as_json(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert "OpenAIErrorBody" in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if status == "default" or status >= "4":
                    assert list(response.get("content", {"application/json": {}})) == ["application/json"], (
                        path,
                        method,
                        status,
                    )


def test_every_kind_of_reply_is_documented(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    def kinds(path: str, method: str) -> set[str]:
        return set(paths[path][method]["responses"]["200"]["content"])

    assert kinds("/metrics", "get") == {"text/plain", "application/openmetrics-text"}
    for path in ("/generate", "/v1/images/generations"):
        assert "text/event-stream" in kinds(path, "post")
        # Some readers would take a schema with a type for that of one event, others for that of the whole text.
        assert "type" not in paths[path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]
