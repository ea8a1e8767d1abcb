"""Addresses: the prefix under which a proxy publishes the service, trailing slashes, HEAD, and the methods of a path."""

from fastapi import Request
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


class Paths:
    """ASGI middleware that gives a path the form that routes have, so that equal addresses have equal replies.

    - A path has the prefix (``root_path``) in front, whether or not the proxy removed it. Routes, mounts and addresses in
      replies then agree.
    - A trailing slash makes no difference. Starlette's redirect would name the scheme and host that the proxy used.
    - HEAD is answered as GET: FastAPI registers GET alone. The server omits the body.
    - The target of a request may be a whole URL (RFC 9112, section 3.2.2).
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root, path = self._root_path or scope.get("root_path", ""), scope["path"]
        if path == "*":  # OPTIONS * is about the server
            path = "/"
        elif (start := path.find("://")) >= 0 and not path.startswith("/"):
            path = "/" + path[start + 3 :].partition("/")[2]
        if not f"{path}/".startswith(f"{root}/"):
            path = root + path
        path = path.rstrip("/")
        if path == root:
            path += "/"
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        # A copy: the server reads its own scope to know that the reply to HEAD has no body.
        await self._app({**scope, "root_path": root, "path": path, "method": method}, receive, send)


def path_of(scope: Scope) -> str:
    """Return the path of a request without the prefix, as routes have it."""
    path: str = scope["path"]
    return path.removeprefix(_root_of(scope))


def _root_of(scope: Scope) -> str:
    """Return the app's prefix; a mount adds its own to ``root_path``."""
    root: str = scope.get("app_root_path", scope.get("root_path", ""))
    return root


def route_of(request: Request) -> BaseRoute | None:
    """Return the route of a request that has not come to the router; None if there is none.

    FastAPI's own list has routers, which do not tell which of their routes matches.
    """
    scope = {**request.scope, "root_path": _root_of(request.scope)}
    routes: list[BaseRoute] = request.app.state.routes
    return next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)


def allowed_methods(request: Request) -> list[str]:
    """Return the methods of a path: Starlette's own Allow header has those of one route alone."""
    scope, routes = {**request.scope, "root_path": _root_of(request.scope)}, request.app.router.routes
    files = [route for route in routes if isinstance(route, Mount)]
    found = [
        method
        for method in _METHODS
        for route in (routes if method == "GET" else [route for route in routes if route not in files])
        if route.matches(scope | {"method": method})[0] is Match.FULL
    ]
    return [*dict.fromkeys(found), *(["HEAD"] if "GET" in found else []), "OPTIONS"]
