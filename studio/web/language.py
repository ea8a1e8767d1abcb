"""Texts of the pages in each language: ``locales/<language>/<page>.json``, found as ``page.key``."""

import contextlib
import dataclasses
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from longcat.problem import Problem, show

LANGUAGES: Mapping[str, str] = {"en": "English", "zh": "中文"}
COOKIE = "language"
_FOLDER = Path(__file__).parent.parent / "locales"
FALLBACK = "en"


class _Numbers(string.Formatter):
    """A formatter that inflects what is counted: ``{n:picture|pictures}`` gives "1 picture" and "2 pictures"."""

    def format_field(self, value: Any, format_spec: str) -> str:
        one, is_counted, many = format_spec.partition("|")
        return (
            f"{value} {one if str(value) == '1' else many}" if is_counted else super().format_field(value, format_spec)
        )


_FORMATTER = _Numbers()


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language: its code and its catalogue."""

    code: str
    messages: Mapping[str, str]
    errors: Mapping[str, tuple[str, ...]]
    """Templates of problem and remedy by code; empty for English, the language of the templates in code."""

    @property
    def tag(self) -> str:
        """Return the tag for ``<html lang>``."""
        return "zh-Hans" if self.code == "zh" else self.code

    def __call__(self, key: str, /, **values: Any) -> str:
        """Return the text of a key, with ``{name}`` and ``{number:one|many}`` filled in; a missing key is a bug."""
        return _FORMATTER.vformat(self.messages[key], (), values)

    def explain(self, problem: Problem) -> str:
        """Return a problem and its remedy in this language, without field and value; in English if it has no template.

        English too if the template does not fit the details: a service of another version may send others with that code.
        """
        inner = {name: self.tell(v) if isinstance(v, Problem) else v for name, v in problem.details.items()}
        filled = dataclasses.replace(problem, details=inner)
        if (forms := self.errors.get(problem.code)) is not None:
            with contextlib.suppress(KeyError, ValueError, TypeError):
                return "；".join(filled.fill(form) for form in forms if form)
        return filled.clause

    def tell(self, problem: Problem) -> str:
        """Return a problem with its field and value."""
        if not problem.field:
            return self.explain(problem)
        subject = self.label(problem.field)
        if problem.value is not None:
            subject += f" {show(problem.value)}"
        return f"{subject}{self('error.colon')}{self.explain(problem)}"

    def sentence(self, problem: Problem) -> str:
        """Return a problem as a sentence: capitalised, with a full stop."""
        text = self.tell(problem)
        return f"{text[:1].upper()}{text[1:]}{self('error.full_stop')}"

    def translates(self, problem: Problem) -> bool:
        """Return True if the problem has a template in this language."""
        return self.code == FALLBACK or problem.code in self.errors

    def label(self, field: str) -> str:
        """Return the label of a field in this language; a field without one keeps its name."""
        return self.messages.get(f"field.{field}", field)

    def has(self, key: str) -> bool:
        """Return True if the key exists."""
        return key in self.messages


def load_languages() -> dict[str, Language]:
    """Read all catalogues from disk."""
    return {
        code: Language(
            code=code,
            messages=_catalogue(_FOLDER / code),
            errors=_errors(_FOLDER / code / "errors"),
        )
        for code in LANGUAGES
    }


def language_of(request: Request) -> str:
    """Return the chosen language, else the one that the browser prefers, else English."""
    if (chosen := request.cookies.get(COOKIE)) in LANGUAGES:
        return str(chosen)
    preferred = sorted(map(_parse, request.headers.get("accept-language", "").split(",")), reverse=True)
    return next((code for quality, code in preferred if quality and code in LANGUAGES), FALLBACK)


def _catalogue(folder: Path) -> dict[str, str]:
    return {
        f"{path.stem}.{key}": text
        for path in sorted(folder.glob("*.json"))
        for key, text in json.loads(path.read_text(encoding="utf-8")).items()
    }


def _errors(folder: Path) -> dict[str, tuple[str, ...]]:
    return {
        code: tuple(forms)
        for path in sorted(folder.glob("*.json"))
        for code, forms in json.loads(path.read_text(encoding="utf-8")).items()
    }


def _parse(item: str) -> tuple[float, str]:
    """Parse ``zh-CN;q=0.8`` into 0.8 and zh."""
    tag, _, quality = item.partition(";q=")
    try:
        return float(quality or 1), tag.strip().lower().partition("-")[0]
    except ValueError:
        return 0.0, ""
