"""Rendering of templates in the browser's language and theme."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from longcat.problem import Problem
from studio.web.language import LANGUAGES, Language, language_of, load_languages
from studio.web.navigation import NAVIGATION
from studio.web.static_files import asset_url

THEMES = ("auto", "light", "dark")
THEME_COOKIE = "theme"
_TEMPLATES_FOLDER = Path(__file__).parent.parent / "templates"


class Pages:
    """All templates and locale catalogues, read once."""

    def __init__(self) -> None:
        self.languages: Mapping[str, Language] = load_languages()
        self._environment = Environment(
            loader=FileSystemLoader(_TEMPLATES_FOLDER),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {"navigation": NAVIGATION, "languages": LANGUAGES, "asset": asset_url}
        self._environment.filters |= {
            "as_json": partial(json.dumps, ensure_ascii=False),
            "moment": _moment,
            "megabytes": _megabytes,
            "gigabytes": _gigabytes,
            "short": _short,
        }

    def language(self, request: Request) -> Language:
        """Return the language of a request."""
        return self.languages[language_of(request)]

    def text(self, request: Request, template: str, **context: Any) -> str:
        """Render a template to text: a page, or a fragment of one."""
        language = self.language(request)
        theme = request.cookies.get(THEME_COOKIE)
        studio = request.app.state.studio
        return self._environment.get_template(template).render(
            t=language,
            lang=language,
            explain=partial(_marked, language, language.explain),
            tell=partial(_marked, language, language.tell),
            theme=theme if theme in THEMES else "auto",
            path=request.scope["path"],
            is_logged_in=not studio.access.is_open,
            service=studio.service,
            **context,
        )


def render(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Reply with a page, or with a fragment of one."""
    pages: Pages = request.app.state.pages
    return HTMLResponse(pages.text(request, template, **context), status_code=status, headers={"Vary": "Cookie"})


def is_fragment(request: Request) -> bool:
    """Return True for a request of htmx, which swaps the reply into the page."""
    return request.headers.get("hx-request") == "true"


def page_behind(request: Request) -> str:
    """Return the path of the page that a request of htmx comes from; empty if it is not known."""
    try:
        return urlsplit(request.headers.get("hx-current-url", "")).path
    except ValueError:  # nothing that a browser sends
        return ""


def redirect(request: Request, path: str) -> Response:
    """Return the reply that leads the browser to another page: by htmx's header, or by the status 303."""
    if is_fragment(request):
        return Response(status_code=204, headers={"HX-Redirect": path})
    return RedirectResponse(path, status_code=303)


def _marked(language: Language, form: Callable[[Problem], str], problem: Problem) -> Markup:
    """Return a problem's text, marked as English if the page's language has no template of it."""
    text = escape(form(problem))
    return text if language.translates(problem) else Markup('<span lang="en">{}</span>').format(text)


def _moment(when: datetime) -> str:
    """Return a time for ``<time datetime>``; the page's script converts it to the browser's time zone."""
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _short(number: float) -> str:
    """Format a number without trailing zeros."""
    return f"{number:g}"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.0f} kB"


def _gigabytes(size_bytes: int) -> str:
    """Format bytes in MiB or GiB, the units of device memory."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**29 else f"{size_bytes / 2**20:.0f} MiB"
