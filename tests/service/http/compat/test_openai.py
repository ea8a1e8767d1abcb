"""The real ``openai`` client against a real server."""

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from longcat.adapter.modules import lora_targets
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from service.wire.picture import Recipe
from tests.conftest import RunningServer
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put
from tests.service.http.compat.conftest import APPLE, load, unload
from tests.service.http.replies import metric


@pytest.fixture
def ai(running: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as session:
        yield session


def own(http: httpx.Client, **fields: Any) -> bytes:
    """Return the picture of our own endpoint."""
    reply = http.post("/generate", json=APPLE | fields)
    assert reply.status_code == 200, reply.text
    return reply.content


def decoded(image: Any) -> bytes:
    return base64.b64decode(image.b64_json)


def test_it_draws_what_our_own_endpoint_draws(ai: openai.OpenAI, http: httpx.Client) -> None:
    body = ai.images.generate(
        prompt="a red apple", model="embedded", n=2, size="192x64", output_format="webp", response_format="b64_json",
        extra_body={"seed": 1, "steps": 3},
    )  # fmt: skip
    assert body.data is not None
    files = [decoded(image) for image in body.data]
    assert files == [own(http, seed=seed, width=192, height=64, output_format="webp") for seed in (1, 2)]
    assert (body.size, body.output_format, body.background) == ("192x64", "webp", "opaque")
    assert body.usage is not None
    assert body.usage.output_tokens == 2 * 12 * 4
    assert body.usage.input_tokens > 0
    assert body.data[0].revised_prompt is None


def test_our_own_fields_go_in_extra_body_and_headers_give_the_result(ai: openai.OpenAI, http: httpx.Client) -> None:
    extra = {
        "seed": 5, "steps": 4, "guidance_scale": 3.5, "negative_prompt": "green", "cfg_renorm": False,
        "adapters": [{"name": "ink", "scale": 0.5}],
    }  # fmt: skip
    raw = ai.images.with_raw_response.generate(prompt="a red apple", extra_body=extra)
    file = decoded(raw.parse().data[0])
    assert file == own(http, **extra)
    assert raw.headers["x-adapters"].startswith("ink@1;scale=0.5;")
    assert raw.headers["x-seed"] == "5"
    request = Recipe.model_validate_json(Image.open(io.BytesIO(file)).info["lithograph"]).request
    assert (request.steps, request.guidance_scale, request.negative_prompt) == (4, 3.5, "green")


def test_what_has_no_effect_is_taken(ai: openai.OpenAI, http: httpx.Client) -> None:
    body = ai.images.generate(
        prompt="a red apple", size="auto", quality="high", style="vivid", background="auto", moderation="low", user="me",
        extra_body={"seed": 1, "steps": 3},
    )  # fmt: skip
    assert decoded(body.data[0]) == own(http)


def test_an_adapter_is_a_model(ai: openai.OpenAI, http: httpx.Client) -> None:
    with_ink = own(http, adapters=[{"name": "ink"}])
    assert with_ink != own(http)
    for name in ("ink", "ink@1"):
        body = ai.images.generate(prompt="a red apple", model=name, extra_body={"seed": 1, "steps": 3})
        pixels = [Image.open(io.BytesIO(file)).tobytes() for file in (decoded(body.data[0]), with_ink)]
        assert pixels[0] == pixels[1]
    half = {"seed": 1, "steps": 3, "adapters": [{"name": "ink", "scale": 0.5}]}
    body = ai.images.generate(prompt="a red apple", model="ink", extra_body=half)
    assert decoded(body.data[0]) == own(http, adapters=half["adapters"])


def test_models_are_the_base_and_its_adapters(ai: openai.OpenAI) -> None:
    base, *adapters = ai.models.list().data
    assert (base.id, base.owned_by, base.object) == ("embedded", "lithograph", "model")
    ink = next(card for card in adapters if card.id == "ink")
    assert ink.model_extra == {"root": "ink@1", "parent": "embedded"}
    assert ink.created > 1_700_000_000
    assert ai.models.retrieve("ink@1").id == "ink"
    with pytest.raises(openai.NotFoundError) as caught:
        ai.models.retrieve("someone/nothing")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_every_version_that_draws_is_a_model(
    ai: openai.OpenAI, http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    for seed in (4, 5):
        put(storage, model, tmp_path, "twice", random_lora(lora_targets(model.transformer), seed=seed))
    assert load(http, "twice@1", "twice/1").status_code == 200
    card = ai.models.retrieve("twice@1")
    assert (card.id, card.model_extra) == ("twice@1", {"root": "twice@1", "parent": "embedded"})
    assert ai.models.retrieve("twice").model_extra == {"root": "twice@2", "parent": "embedded"}
    old = ai.images.generate(prompt="a red apple", model="twice@1", extra_body={"seed": 1, "steps": 3})
    assert decoded(old.data[0]) == own(http, adapters=[{"name": "twice@1"}])  # type: ignore[index]
    for name in ("twice@3", "nobody@1", "ink@999999999", "Twice@1"):
        with pytest.raises(openai.NotFoundError) as caught:
            ai.models.retrieve(name)
        assert caught.value.code == "model_not_found"
    refused = unload(http, "twice@1")
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert "give the name alone: twice" in refused.json()["error"]["message"]
    assert unload(http, "twice").status_code == 200
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("twice@1")


def test_an_adapter_with_the_name_of_the_base_is_not_served(
    ai: openai.OpenAI, http: httpx.Client, storage: Storage, foreign: Path
) -> None:
    refused = load(http, "embedded", foreign / "style.safetensors")
    assert refused.status_code == 400
    assert "the name of a base model" in refused.json()["error"]["message"]
    manifest = storage.read("ink/1/manifest.json").content.replace(b'"name": "ink"', b'"name": "embedded"')
    storage.create("embedded/1/adapter.safetensors", storage.read("ink/1/adapter.safetensors").content)
    storage.create("embedded/1/manifest.json", manifest)  # by another program
    storage.create("embedded/latest", b"1")
    assert "the name of a base model" in load(http, "embedded", "embedded").json()["error"]["message"]
    assert [card.id for card in ai.models.list()].count("embedded") == 1
    assert http.post("/generate", json=APPLE | {"adapters": [{"name": "embedded"}]}).status_code == 422
    body = ai.images.generate(prompt="a red apple", model="embedded", extra_body={"seed": 1, "steps": 3})
    assert decoded(body.data[0]) == own(http)  # type: ignore[index]


@pytest.mark.parametrize("partial_images", [0, 3])
def test_a_stream_has_previews_and_ends_with_the_picture(
    ai: openai.OpenAI, http: httpx.Client, partial_images: int
) -> None:
    stream = ai.images.generate(
        prompt="a red apple", stream=True, partial_images=partial_images, size="128x128",
        extra_body={"seed": 1, "steps": 40},
    )  # fmt: skip
    *partials, completed = list(stream)
    assert isinstance(completed, ImageGenCompletedEvent)
    assert base64.b64decode(completed.b64_json) == own(http, steps=40)
    assert completed.usage.total_tokens == completed.usage.input_tokens + 64
    assert bool(partials) == bool(partial_images)
    assert len(partials) <= partial_images
    for index, partial in enumerate(partials):
        assert isinstance(partial, ImageGenPartialImageEvent)
        assert (partial.partial_image_index, partial.output_format) == (index, "jpeg")
        assert Image.open(io.BytesIO(base64.b64decode(partial.b64_json))).format == "JPEG"


def test_a_stream_of_several_pictures_numbers_them(ai: openai.OpenAI, http: httpx.Client) -> None:
    events = list(ai.images.generate(prompt="a red apple", stream=True, n=2, extra_body={"seed": 1, "steps": 3}))
    extras = [event.model_extra or {} for event in events]
    assert [(extra["image_index"], extra["seed"]) for extra in extras] == [(0, 1), (1, 2)]
    assert [base64.b64decode(event.b64_json) for event in events] == [own(http, seed=seed) for seed in (1, 2)]


def test_the_asynchronous_client_too(running: RunningServer, http: httpx.Client) -> None:
    async def draw() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            extras = [{"seed": seed, "steps": 3} for seed in (1, 2)]
            asked = [client.images.generate(prompt="a red apple", extra_body=extra) for extra in extras]
            return [decoded(body.data[0]) for body in await asyncio.gather(*asked)]

    assert asyncio.run(draw()) == [own(http, seed=1), own(http, seed=2)]


@pytest.mark.parametrize(
    ("fields", "param", "code", "remedy"),
    [
        ({"size": "100x100"}, "size", "invalid_value", "give a multiple of 64"),
        ({"size": "large"}, "size", "invalid_value", "give WIDTHxHEIGHT"),
        ({"size": "128x128\n"}, "size", "invalid_value", "give WIDTHxHEIGHT"),
        ({"size": "１２８x１２８"}, "size", "invalid_value", "give WIDTHxHEIGHT"),
        (
            {"extra_body": {"adapters": [{"name": "ink\n"}]}},
            "adapters.0.name",
            "invalid_value",
            "use lower-case letters",
        ),
        ({"size": "1024x1024"}, "size", "invalid_value", "give at most 256 x 256"),
        ({"n": 9}, "n", "invalid_value", "give at most 8"),
        ({"n": 0}, "n", "invalid_value", "give at least 1"),
        ({"prompt": ""}, "prompt", "invalid_value", "give some text"),
        ({"output_format": "gif"}, "output_format", "invalid_value", "give 'png', 'jpeg' or 'webp'"),
        ({"response_format": "url"}, "response_format", "invalid_value", "give 'b64_json'"),
        ({"background": "transparent"}, "background", "invalid_value", "give 'auto' or 'opaque'"),
        ({"partial_images": 4, "stream": True}, "partial_images", "invalid_value", "give at most 3"),
        ({"extra_body": {"seeed": 1}}, "seeed", "unknown_parameter", "did you mean 'seed'?"),
        ({"extra_body": {"steps": 0}}, "steps", "invalid_value", "give at least 1"),
        (
            {"extra_body": {"adapters": [{"name": "Ink!"}]}},
            "adapters.0.name",
            "invalid_value",
            "use lower-case letters",
        ),
    ],
)
def test_errors_have_their_shape(ai: openai.OpenAI, fields: dict[str, Any], param: str, code: str, remedy: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.images.generate(**{"prompt": "a red apple"} | fields)
    error = caught.value
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, code)
    assert remedy in str(error.body["message"])


@pytest.mark.parametrize("name", ["nobody", "ink@9", "Not a name", "dall-e-3", "ink\n"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_not_there(ai: openai.OpenAI, name: str, stream: bool) -> None:
    with pytest.raises(openai.APIError) as caught:
        list(ai.images.generate(prompt="a red apple", model=name, stream=stream))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert f"`{name}`" in caught.value.message
    assert isinstance(caught.value, openai.NotFoundError) or stream


def test_an_adapter_that_is_not_there_is_not_taken_for_the_model(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ai.images.generate(prompt="a red apple", model="ink", extra_body={"adapters": [{"name": "nobody"}]})
    assert caught.value.param == "adapters.0.name"
    assert "nobody" in caught.value.message


@pytest.mark.parametrize("size", ["100x100", "100x128", "128x100", "0x64", "64x99999", "1024x128", "128x1024", "large"])
@pytest.mark.parametrize("adapter", [None, "ink"])
def test_a_wrong_size_is_named_once_as_it_was_sent(ai: openai.OpenAI, size: str, adapter: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.images.generate(prompt="a red apple", size=size, model=adapter)
    assert caught.value.param == "size"
    assert caught.value.message.count(f"size = {size}: ") == 1
    assert "width" not in caught.value.message
    assert "height" not in caught.value.message


@pytest.mark.parametrize("adapters", [["ink"], ["ink", "ink"], ["ink", "Ink!"]])
def test_problems_of_adapters_are_those_of_the_sent_list(ai: openai.OpenAI, adapters: list[str]) -> None:
    chosen = [{"name": name} for name in adapters]
    with pytest.raises(openai.BadRequestError) as caught:
        ai.images.generate(prompt="a red apple", model="ink@1", extra_body={"adapters": chosen})
    assert caught.value.param == "adapters.0.name"
    assert "adapters.0.name = ink: adapter ink is named twice" in caught.value.message


def test_other_errors(ai: openai.OpenAI, http: httpx.Client) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        ai.images.generate(prompt="a red apple", extra_body={"adapters": [{"name": "nobody"}]})
    assert (unknown.value.param, unknown.value.code) == ("adapters.0.name", "adapter_not_found")
    with pytest.raises(openai.InternalServerError) as late:
        ai.images.generate(prompt="a cat", n=8, extra_body={"steps": 100, "timeout_seconds": 0.3})
    assert (late.value.status_code, late.value.code, late.value.type) == (504, "timeout", "server_error")
    stream = ai.images.generate(prompt="a cat", n=8, stream=True, extra_body={"steps": 100, "timeout_seconds": 0.3})
    with pytest.raises(openai.APIError, match="time") as cut:
        list(stream)
    assert cut.value.code == "timeout"
    with pytest.raises(openai.APIStatusError) as large:
        ai.images.generate(prompt="x" * 70_000)
    assert (large.value.status_code, large.value.code) == (413, "body_too_large")
    broken = http.post("/v1/images/generations", content=b"{")
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "not_json")
    assert metric(http, "lithograph_requests_total", status="504") >= 2


def test_without_storage_the_models_are_the_base_and_the_adapters_that_come_with_it(client: httpx.Client) -> None:
    with openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="none", max_retries=0) as ai:
        assert [card.id for card in ai.models.list()] == ["embedded", "turbo"]
        with pytest.raises(openai.NotFoundError):
            ai.images.generate(prompt="a red apple", model="ink")


def test_docs_show_them(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    posts = ("/v1/images/generations", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
    for path in posts:
        assert paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert paths["/v1/models"]["get"]["responses"]["200"]
    assert paths["/v1/jobs/{job_id}"].keys() == {"get", "delete"}
