"""Static files: their URLs carry a hash of the content, so browsers may cache them forever."""

import hashlib
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qs

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from typing_extensions import override

STATIC_FOLDER = Path(__file__).parent.parent / "static"
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
"""For URLs without the current hash: cached, but revalidated by ETag before each use."""


def asset_url(name: str) -> str:
    """Return the URL of a static file; it changes when the file does."""
    return f"/static/{name}?v={_digest(name)}"


class StaticAssets(StaticFiles):
    """The static files, which never change under the URL that ``asset_url`` returns."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC_FOLDER)

    @override
    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file with its cache headers."""
        reply = await super().get_response(path, scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("v")
        is_current = reply.status_code < 400 and given == [_digest(path)]
        reply.headers["Cache-Control"] = _FOR_EVER if is_current else _ASK_AGAIN
        return reply


@lru_cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC_FOLDER / name).read_bytes()).hexdigest()[:12]
