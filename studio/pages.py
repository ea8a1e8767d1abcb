"""Templates to pages, in the reader's language and colours."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from studio.language import LANGUAGES, Language, language_of, load_languages
from studio.navigation import NAVIGATION

THEMES = ("auto", "light", "dark")
THEME_COOKIE = "theme"
STATIC_FOLDER = Path(__file__).parent / "static"
_TEMPLATES_FOLDER = Path(__file__).parent / "templates"


class Pages:
    """All templates and all catalogues, read once."""

    def __init__(self) -> None:
        self.languages: Mapping[str, Language] = load_languages()
        self._versions: dict[str, str] = {}
        self._environment = Environment(
            loader=FileSystemLoader(_TEMPLATES_FOLDER),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {"navigation": NAVIGATION, "languages": LANGUAGES, "asset": self._asset}
        self._environment.filters |= {
            "as_json": partial(json.dumps, ensure_ascii=False),
            "moment": _moment,
            "megabytes": _megabytes,
            "gigabytes": _gigabytes,
            "short": _short,
        }

    def language(self, request: Request) -> Language:
        """The reader's."""
        return self.languages[language_of(request)]

    def text(self, request: Request, template: str, **context: Any) -> str:
        """A template, filled in: a page, or a fragment that is put into one."""
        language = self.language(request)
        theme = request.cookies.get(THEME_COOKIE)
        studio = request.app.state.studio
        return self._environment.get_template(template).render(
            t=language,
            lang=language,
            retold=partial(_retold, language),
            theme=theme if theme in THEMES else "auto",
            path=request.url.path,
            is_logged_in=not studio.access.is_open,
            service=studio.service,
            **context,
        )

    def _asset(self, name: str) -> str:
        """The URL of a static file; it changes when the file does, so that browsers may keep it."""
        if name not in self._versions:
            self._versions[name] = hashlib.sha256((STATIC_FOLDER / name).read_bytes()).hexdigest()[:12]
        return f"/static/{name}?v={self._versions[name]}"


def render(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Reply with a page, or with a fragment of one."""
    pages: Pages = request.app.state.pages
    return HTMLResponse(pages.text(request, template, **context), status_code=status, headers={"Vary": "Cookie"})


def is_fragment(request: Request) -> bool:
    """Whether htmx asks, which puts the reply into the page that is there."""
    return request.headers.get("hx-request") == "true"


def _retold(language: Language, said: str) -> Markup:
    """What trainer or service said: in the reader's language, or in English and marked as such."""
    told = language.retell(said)
    return Markup('<span lang="en">{}</span>').format(said) if told is None else Markup("{}").format(told)


def _moment(when: datetime) -> str:
    """A time for ``<time datetime>``; the page's script says it in the reader's own zone."""
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _short(number: float) -> str:
    """Without zeros that say nothing."""
    return f"{number:g}"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.0f} kB"


def _gigabytes(size_bytes: int) -> str:
    """Of memory: what a device is sold by."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**29 else f"{size_bytes / 2**20:.0f} MiB"
