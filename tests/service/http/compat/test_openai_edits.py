"""The real ``openai`` client's edits against a real server."""

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent
from PIL import Image

from tests.conftest import RunningServer
from tests.longcat.sampling.encoding.test_source import middle, photo
from tests.service.http.compat.conftest import APPLE
from tests.service.http.replies import pixels
from tests.service.http.test_editing import MASK, PHOTO, b64, file_of

STEPS = {"seed": 1, "steps": 3}


@pytest.fixture
def ai(running: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60) as session:
        yield session


def own(http: httpx.Client, **fields: object) -> bytes:
    reply = http.post("/generate", json=APPLE | {"image": b64(PHOTO)} | fields)
    assert reply.status_code == 200, reply.text
    return reply.content


def decoded(image: openai.types.Image) -> bytes:
    assert image.b64_json is not None
    return base64.b64decode(image.b64_json)


def transparent() -> bytes:
    """Return a mask as OpenAI's clients send it: the picture, transparent where it is to change."""
    return file_of(Image.merge("RGBA", [*Image.fromarray(photo()).split(), Image.fromarray(255 - middle())]))


def test_a_mask_is_what_is_transparent_and_its_pixels_alone_change(ai: openai.OpenAI, http: httpx.Client) -> None:
    body = ai.images.edit(
        image=("a.png", PHOTO), mask=("m.png", transparent()), prompt="a red apple", n=2, extra_body=STEPS
    )
    assert body.data is not None
    pictures = [decoded(image) for image in body.data]
    ours = [own(http, mask=b64(MASK), seed=seed) for seed in (1, 2)]
    # The recipes differ, by the mask's checksum; the pixels do not.
    for picture, expected in zip(pictures, ours, strict=True):
        assert (pixels(picture) == pixels(expected)).all()
    assert body.size == "128x128"


def test_without_a_mask_the_whole_picture_changes_at_the_default_strength(
    ai: openai.OpenAI, http: httpx.Client
) -> None:
    body = ai.images.edit(
        image=[("a.png", PHOTO)],
        prompt="a red apple",
        model="ink",
        size="64x128",
        output_format="webp",
        extra_body=STEPS,
    )
    assert body.data is not None
    fields = {"width": 64, "height": 128, "output_format": "webp", "adapters": ["ink"], "strength": 0.6}
    assert decoded(body.data[0]) == own(http, **fields)


def test_openais_json_has_pictures_as_references(http: httpx.Client) -> None:
    def post(**fields: object) -> httpx.Response:
        return http.post("/v1/images/edits", json={"prompt": "a red apple"} | STEPS | fields)

    def reference(content: bytes) -> dict[str, str]:
        return {"image_url": f"data:image/png;base64,{b64(content)}"}

    big = file_of(Image.effect_noise((512, 512), 90).convert("RGB"))  # more than a body may have beside its pictures
    for picture, mask in ((PHOTO, transparent()), (PHOTO, None), (big, None)):
        one, other = {"images": [reference(picture)]}, {"image": b64(picture)}
        if mask is not None:
            one, other = one | {"mask": reference(mask)}, other | {"mask": b64(mask)}
        replies = [post(**fields, size="128x128") for fields in (one, other)]
        assert replies[0].status_code == 200, replies[0].text
        assert replies[0].json()["data"] == replies[1].json()["data"]
    for wrong in (
        {"images": [{"image_url": "http://169.254.169.254/"}]}, {"images": [{"file_id": "file-1"}]}, {"images": ["x"]},
        {"images": [reference(PHOTO)], "mask": {"image_url": 1}},
    ):  # fmt: skip
        error = post(**wrong).json()["error"]
        assert error["param"] == ("mask" if "mask" in wrong else "images.0"), error
        assert "data URL" in error["message"]
    assert post(images=[]).json()["error"]["param"] == "image"
    assert post(images=[reference(PHOTO)], image=b64(PHOTO)).json()["error"]["param"] == "images"


def test_edits_stream_with_partial_images(ai: openai.OpenAI, http: httpx.Client) -> None:
    stream = ai.images.edit(
        image=("a.png", PHOTO),
        prompt="a red apple",
        stream=True,
        partial_images=1,
        extra_body=STEPS | {"strength": 1.0},
    )
    events = list(stream)
    assert isinstance(events[0], ImageEditPartialImageEvent)
    assert isinstance(events[-1], ImageEditCompletedEvent)
    assert base64.b64decode(events[-1].b64_json) == own(http, strength=1.0)


def test_the_asynchronous_client_edits(running: RunningServer, http: httpx.Client) -> None:
    async def edit() -> bytes:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as session:
            body = await session.images.edit(image=("a.png", PHOTO), prompt="a red apple", extra_body=STEPS)
            assert body.data is not None
            return decoded(body.data[0])

    assert asyncio.run(edit()) == own(http)


def test_errors_have_openais_shape(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as several:
        ai.images.edit(image=[("a.png", PHOTO), ("b.png", PHOTO)], prompt="a cat")
    assert (several.value.param, several.value.code) == ("image", "invalid_value")
    assert "takes 1 picture" in several.value.message
    with pytest.raises(openai.BadRequestError) as broken:
        ai.images.edit(image=("a.png", PHOTO), mask=("m.png", b"no picture"), prompt="a cat")
    assert broken.value.param == "mask"
    too_large: Any = "4096x4096"  # no size that the client knows
    with pytest.raises(openai.BadRequestError) as size:
        ai.images.edit(image=("a.png", PHOTO), prompt="a cat", size=too_large)
    assert size.value.param == "size"
    with pytest.raises(openai.NotFoundError) as model:
        ai.images.edit(image=("a.png", PHOTO), prompt="a cat", model="nobody")
    assert model.value.code == "model_not_found"


def test_variations_are_refused_with_what_to_do(ai: openai.OpenAI) -> None:
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(openai.BadRequestError, match="POST /v1/images/edits"),
    ):
        ai.images.create_variation(image=("a.png", PHOTO))
