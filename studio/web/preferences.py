"""Parts of every page: language, colours, login, and the state of the service."""

from pathlib import PurePosixPath
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match

from studio.context import studio_of
from studio.web import access
from studio.web.errors import FormError
from studio.web.forms import text_of
from studio.web.language import COOKIE as LANGUAGE_COOKIE
from studio.web.language import LANGUAGES
from studio.web.pages import THEME_COOKIE, THEMES, render

router = APIRouter()

_YEAR_SECONDS = 365 * 24 * 3600


@router.post("/preferences")
async def set_preferences(request: Request) -> Response:
    """Store a language or a theme in a cookie, and reload the page."""
    async with request.form() as form:
        given = {cookie: text_of(form, cookie) for cookie in (LANGUAGE_COOKIE, THEME_COOKIE) if cookie in form}
    reply = RedirectResponse(_page_of(request, request.headers.get("referer", "")), status_code=303)
    for cookie, value in given.items():
        choices = tuple(LANGUAGES) if cookie == LANGUAGE_COOKIE else THEMES
        if value not in choices:
            raise FormError(
                "preference_unknown", "not one of the choices", remedy="give {choices}",
                field=cookie, value=value, choices=", ".join(choices),
            )  # fmt: skip
        reply.set_cookie(cookie, value, max_age=_YEAR_SECONDS, samesite="lax", httponly=True)
    return reply


@router.get("/login")
async def login_page(request: Request) -> Response:
    """Show the login form."""
    return render(request, "login.html", failed=False) if not studio_of(request).access.is_open else _to("/")


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Check the token."""
    studio = studio_of(request)
    async with request.form() as form:
        token = text_of(form, "token")
    if not await studio.access.accepts(request, token):
        return render(request, "login.html", status=401, failed=True)
    reply = _to("/")
    studio.access.log_in(reply, secure=request.scope["scheme"] == "https")
    return reply


@router.post("/logout")
async def log_out() -> Response:
    """Delete the login cookie."""
    reply = _to("/login")
    reply.delete_cookie(access.COOKIE)
    return reply


@router.get("/service")
async def service_state(request: Request, seen: str = "") -> Response:
    """Return the service's state for the top of the page; nothing if the page shows it already."""
    if studio_of(request).service.fingerprint == seen:
        return Response(status_code=204)
    reply = render(request, "service_state.html")
    reply.headers["HX-Trigger"] = "service-changed"
    return reply


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


def _page_of(request: Request, url: str) -> str:
    """Return path and query of a URL's page, or of the nearest page above it; the front page for an invalid URL.

    Never the host: a redirect must not lead to another site. A form's own URL shows no page.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "/"
    path = "/" + parts.path.lstrip("/\\")
    if _is_page(request, path):
        return f"{path}?{parts.query}" if parts.query else path
    above = (str(folder) for folder in PurePosixPath(path).parents)
    return next((folder for folder in above if _is_page(request, folder)), "/")


def _is_page(request: Request, path: str) -> bool:
    scope = {**request.scope, "method": "GET", "path": path, "root_path": ""}
    return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
