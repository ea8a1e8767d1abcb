"""A vision-language model behind an OpenAI-compatible endpoint: ``POST {endpoint}/chat/completions``. No torch."""

import base64
import io
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from longcat.errors import ConfigError, DataError
from trainer.data.captioning.text import one_line

_MOST_REPLY_BYTES = 2**20
_JPEG_QUALITY = 92
_WORTH_A_RETRY = frozenset({"caption_endpoint_unreachable", "caption_endpoint_busy"})
_LONGEST_PAUSE_SECONDS = 30.0
_EXCERPT = 200


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """The endpoint and the parameters of its requests."""

    url: str
    """Its base, as in http://127.0.0.1:8000/v1."""
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 120.0
    """Time limit of one reply, first byte to last."""
    retries: int = 3
    max_tokens: int = 300
    longest_side_px: int = 1024
    """Larger pictures are sent smaller."""

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise ConfigError(
                "caption_endpoint_malformed",
                "not the address of an endpoint",
                remedy="give one as http://127.0.0.1:8000/v1, and the key in the environment or in a file",
                field="--endpoint",
                value=str(url.copy_with(userinfo=b"")) if url.host else self.url,
            )


class CaptionEndpoint:
    """A client of one endpoint; thread-safe. Redirects are not followed, so that the key goes nowhere else."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        headers = {} if settings.key is None else {"Authorization": f"Bearer {settings.key}"}
        self._http = httpx.Client(headers=headers, timeout=settings.timeout_seconds)
        self._retrying = Retrying(
            stop=stop_after_attempt(settings.retries + 1),
            retry=retry_if_exception(
                lambda error: isinstance(error, DataError) and error.problems[0].code in _WORTH_A_RETRY
            ),
            wait=wait_exponential_jitter(multiplier=0.5, max=_LONGEST_PAUSE_SECONDS),
            reraise=True,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def describe(self, picture: Image.Image, instruction: str) -> str:
        """Return the model's text about a picture, as it came. Raises ``DataError`` for a reply that is none."""
        body = {
            "model": self._settings.model,
            "max_tokens": self._settings.max_tokens,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": instruction},
                        {"type": "image_url", "image_url": {"url": self._data_url(picture)}},
                    ],
                }
            ],
        }
        return _text_of(self._retrying.copy()(self._post, json.dumps(body).encode()))

    def _data_url(self, picture: Image.Image) -> str:
        side = self._settings.longest_side_px
        smaller = picture.copy()
        smaller.thumbnail((side, side))
        content = io.BytesIO()
        smaller.save(content, "JPEG", quality=_JPEG_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"

    def _post(self, body: bytes) -> bytes:
        url = f"{self._settings.url.rstrip('/')}/chat/completions"
        deadline = time.monotonic() + self._settings.timeout_seconds
        headers = {"Content-Type": "application/json"}
        try:
            with self._http.stream("POST", url, content=body, headers=headers) as reply:
                content = _bounded(reply, deadline)
        except httpx.HTTPError as error:
            cause = str(error) or type(error).__name__
            raise DataError("caption_endpoint_unreachable", "no reply: {cause}", cause=cause) from error
        excerpt = one_line(content[:_EXCERPT].decode(errors="replace"))
        if reply.status_code == httpx.codes.TOO_MANY_REQUESTS or reply.is_server_error:
            raise DataError(
                "caption_endpoint_busy",
                "the endpoint replied {status}: {reply}",
                status=reply.status_code,
                reply=excerpt,
            )
        if not reply.is_success:
            raise DataError(
                "caption_endpoint_refused",
                "the endpoint replied {status}: {reply}",
                remedy="check its address, the model's name and the key",
                status=reply.status_code,
                reply=excerpt,
            )
        return content


def _bounded(reply: httpx.Response, deadline: float) -> bytes:
    """Read a reply up to its bound of size and time: one that never ends is an error."""
    content = bytearray()
    for chunk in reply.iter_bytes(65_536):
        content += chunk
        if len(content) > _MOST_REPLY_BYTES:
            raise DataError("caption_reply_too_large", "the reply has more than {most} bytes", most=_MOST_REPLY_BYTES)
        if time.monotonic() > deadline:
            raise DataError("caption_reply_too_slow", "the reply did not end within the time limit")
    return bytes(content)


def _text_of(content: bytes) -> str:
    """Return the text of a chat completion. Raises ``DataError`` if it is none, was refused or was cut short."""
    try:
        choice: Any = json.loads(content)["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        reason = choice.get("finish_reason")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise DataError("caption_reply_malformed", "the reply is no chat completion") from error
    if refusal or reason == "content_filter":
        raise DataError(
            "caption_reply_refused", "the model refused: {reason}", reason=one_line(str(refusal or reason))[:_EXCERPT]
        )
    if not isinstance(text, str):
        raise DataError("caption_reply_malformed", "the reply is no chat completion")
    if reason == "length":
        raise DataError("caption_reply_cut_off", "the caption was cut short", remedy="raise --max-tokens")
    return text
