"""What every page has: language, colours, logging in and out, and how the service is."""

from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from studio import access
from studio.forms import text_of
from studio.language import COOKIE as LANGUAGE_COOKIE
from studio.language import LANGUAGES
from studio.page_error import PageError, Problem
from studio.pages import THEME_COOKIE, THEMES, render
from studio.state import studio_of

router = APIRouter()

_YEAR_SECONDS = 365 * 24 * 3600


@router.post("/preferences")
async def set_preferences(request: Request) -> Response:
    """Remember a language or a theme, and show the same page again."""
    form = await request.form()
    reply = RedirectResponse(_path_of(request.headers.get("referer", "")), status_code=303)
    for cookie, choices in ((LANGUAGE_COOKIE, tuple(LANGUAGES)), (THEME_COOKIE, THEMES)):
        if cookie not in form:
            continue
        if (value := text_of(form, cookie)) not in choices:
            problem = Problem(field=cookie, key="error.choice", values={"value": value, "choices": ", ".join(choices)})
            raise PageError("error.form", problems=(problem,))
        reply.set_cookie(cookie, value, max_age=_YEAR_SECONDS, samesite="lax", httponly=True)
    return reply


@router.get("/login")
async def login_page(request: Request) -> Response:
    """Ask for the token."""
    return render(request, "login.html", failed=False) if not studio_of(request).access.is_open else _to("/")


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Check the token."""
    studio, form = studio_of(request), await request.form()
    if not studio.access.accepts(text_of(form, "token")):
        return render(request, "login.html", status=401, failed=True)
    reply = _to("/")
    studio.access.log_in(reply, secure=request.url.scheme == "https")
    return reply


@router.post("/logout")
async def log_out(request: Request) -> Response:  # noqa: ARG001
    """Forget a browser."""
    reply = _to("/login")
    reply.delete_cookie(access.COOKIE)
    return reply


@router.get("/service")
async def service_state(request: Request, seen: str = "") -> Response:
    """How the service is, for the top of the page; nothing if that is what the page says already."""
    if studio_of(request).service.state == seen:
        return Response(status_code=204)
    reply = render(request, "service_state.html")
    reply.headers["HX-Trigger"] = "service-changed"
    return reply


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


def _path_of(url: str) -> str:
    """Path and query alone: nobody is sent to another site."""
    parts = urlsplit(url)
    path = "/" + parts.path.lstrip("/\\")
    return f"{path}?{parts.query}" if parts.query else path
