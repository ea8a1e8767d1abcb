"""What the pages say, in each language: ``locales/<language>/<page>.json``, found as ``page.key``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from studio.reasons import Reasons, load_reasons

LANGUAGES: Mapping[str, str] = {"en": "English", "zh": "中文"}
COOKIE = "language"
_FOLDER = Path(__file__).parent / "locales"
_FALLBACK = "en"


@dataclass(frozen=True, kw_only=True)
class Language:
    """One language: its code and its catalogue."""

    code: str
    messages: Mapping[str, str]
    reasons: Reasons

    @property
    def tag(self) -> str:
        """For ``<html lang>``."""
        return "zh-Hans" if self.code == "zh" else self.code

    def __call__(self, key: str, /, **values: Any) -> str:
        """The text of a key, with ``{name}`` filled in; a key that is not there is a bug."""
        return self.messages[key].format_map(values)

    def retell(self, said: str) -> str | None:
        """What trainer or service said in English, in this language; None if it has to stay as it is."""
        return self.reasons.retell(said)

    def has(self, key: str) -> bool:
        """Whether there is such a text."""
        return key in self.messages


def load_languages() -> dict[str, Language]:
    """All catalogues, read from disk."""
    return {
        code: Language(code=code, messages=_catalogue(_FOLDER / code), reasons=load_reasons(code)) for code in LANGUAGES
    }


def language_of(request: Request) -> str:
    """What was chosen, else what the browser prefers, else English."""
    if (chosen := request.cookies.get(COOKIE)) in LANGUAGES:
        return str(chosen)
    preferred = sorted(map(_parse, request.headers.get("accept-language", "").split(",")), reverse=True)
    return next((code for quality, code in preferred if quality and code in LANGUAGES), _FALLBACK)


def _catalogue(folder: Path) -> dict[str, str]:
    return {
        f"{path.stem}.{key}": text
        for path in sorted(folder.glob("*.json"))
        for key, text in json.loads(path.read_text(encoding="utf-8")).items()
    }


def _parse(item: str) -> tuple[float, str]:
    """``zh-CN;q=0.8`` as 0.8 and zh."""
    tag, _, quality = item.partition(";q=")
    try:
        return float(quality or 1), tag.strip().lower().partition("-")[0]
    except ValueError:
        return 0.0, ""
