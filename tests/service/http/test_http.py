"""``POST /generate`` and related endpoints on a real server with the embedded model."""

import base64
import io
import json
import re
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import httpx
import numpy as np
import pytest
from PIL import Image

from service.wire.picture import Recipe
from tests.conftest import RunningServer
from tests.service.http.replies import APPLE, metric, pixels


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


def test_a_reply_gives_seed_model_and_timings_and_the_png_carries_its_recipe(client: httpx.Client) -> None:
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


def test_the_sizes_at_which_the_model_draws_well_are_told(client: httpx.Client) -> None:
    sizes = client.get("/v1/info").json()["sizes"]
    assert [128, 128] in sizes
    assert [192, 192] not in sizes


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
        "text_encoder_precision": "no_change", "dtype": "float32", "offload": "none", "slots": 8, "rank": 64, "rows": 12,
        "reason": None,
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


def test_a_client_that_disconnects_while_it_sends_is_no_error(server: RunningServer, client: httpx.Client) -> None:
    before = metric(client, "lithograph_requests_total", status="499")
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.5)
    deadline = time.monotonic() + 60
    while metric(client, "lithograph_requests_total", status="499") == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert metric(client, "lithograph_requests_total", status="499") == before + 1
    assert "ClientDisconnect" not in server.log_text()


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


def test_tokens_are_counted_as_the_limit_counts_them(client: httpx.Client) -> None:
    quoted = client.post("/v1/tokens", json={"prompt": 'a sign "OPEN"'}).json()
    plain = client.post("/v1/tokens", json={"prompt": "a sign OPEN"}).json()
    assert quoted["max_tokens"] == 32
    assert quoted["tokens"] > plain["tokens"] > 0  # quoted text is spelled
    long = client.post("/v1/tokens", json={"prompt": "猫" * 20_000}).json()
    assert (long["tokens"] > 32, long["is_exact"]) == (True, False)
    assert client.post("/v1/tokens", json={"text": "a cat"}).status_code == 422
