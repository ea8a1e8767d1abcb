"""Features of every page of the studio: access, browser security, two languages, readable errors."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import pytest
from starlette.testclient import TestClient

from longcat.problem import Problem
from studio.datasets.bulk import CaptionEdit
from studio.web.language import LANGUAGES, load_languages
from studio.web.static_files import STATIC_FOLDER, asset_url
from tests import ROOT
from tests.studio.web.visitors import HERE, HTML

TEMPLATES = sorted((ROOT / "studio" / "templates").rglob("*.html"))


def test_bodies_are_limited_with_and_without_a_content_length(visitor: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        yield from (b"x" * 65536 for _ in range(10))

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for content in (b"x" * 300_000, endless()):
        reply = visitor.post("/preferences", content=content, headers=form)
        assert reply.status_code == 413
        assert "256 KiB" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-Hans"), ("en-GB,zh;q=0.5", "en"), ("fr", "en"), ("en;q=0,zh;q=0.1", "zh-Hans"),
        ("x;q=y", "en"),
    ],
)  # fmt: skip
def test_the_language_is_that_of_the_browser(visitor: TestClient, accepted: str, expected: str) -> None:
    page = visitor.get("/nothing", headers=HTML | {"Accept-Language": accepted}).text
    assert f'<html lang="{expected}"' in page


def test_language_and_colours_are_remembered(visitor: TestClient) -> None:
    reply = visitor.post(
        "/preferences", data={"language": "zh", "theme": "dark"}, headers={"Referer": f"{HERE}/adapters?x=1"}
    )
    assert reply.headers["location"] == "/adapters?x=1"
    page = visitor.get("/nothing", headers=HTML).text
    assert '<html lang="zh-Hans" data-theme="dark">' in page
    assert "这里没有内容" in page


def test_preferences_lead_to_no_other_site(visitor: TestClient) -> None:
    for referer in ("http://evil.example//evil.example/x", "https://evil.example", "//evil.example"):
        location = visitor.post("/preferences", data={"theme": "dark"}, headers={"Referer": referer}).headers[
            "location"
        ]
        assert re.match(r"^/(?![/\\])", location), location


def test_a_wrong_field_is_named_with_its_value_and_what_to_give(visitor: TestClient) -> None:
    reply = visitor.post("/preferences", data={"theme": "<pink>"}, headers={"HX-Request": "true"})
    assert reply.status_code == 422
    assert reply.headers["hx-retarget"] == "#toasts"
    assert 'data-problem="theme"' in reply.text
    assert "&lt;pink&gt;" in reply.text
    assert "auto, light, dark" in reply.text


def test_every_language_has_every_text() -> None:
    catalogues = load_languages()
    first, *others = catalogues.values()
    for other in others:
        assert first.messages.keys() == other.messages.keys()
        for key, text in first.messages.items():
            assert set(re.findall(r"{(\w+)", text)) == set(re.findall(r"{(\w+)", other.messages[key])), key
    chinese = catalogues["zh"].messages
    unchanged = {key for key, text in first.messages.items() if text == chinese[key] and re.search(r"[a-z]{4}", text)}
    assert not unchanged


def test_what_is_counted_is_inflected() -> None:
    languages = load_languages()
    counted = [(key, text) for key, text in languages["en"].messages.items() if "|" in text]
    assert counted
    for key, text in counted:
        names = re.findall(r"{(\w+)", text)
        for number in (0, 1, 2):
            shown = languages["en"](key, **dict.fromkeys(names, number))
            assert not re.search(
                r"\b1 \w+s\b" if number == 1 else r"\b[02] (picture|file|step|caption|prompt)\b", shown
            ), shown
            assert "|" not in languages["zh"](key, **dict.fromkeys(names, number))
    loose = r"{(n|pictures|captions|images|files)} [a-z]+s\b"
    assert not [
        key for key, text in languages["en"].messages.items() if re.search(loose, text) and "{size}" not in text
    ]


def test_every_text_that_is_named_is_there_and_every_text_is_named() -> None:
    sources = [*TEMPLATES, *(ROOT / "studio").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    catalogue = load_languages()["en"].messages.keys()
    named = set(re.findall(r"""\bt\(["']([a-z_]+\.[a-z0-9_]+)["'](?! ?~)""", code))
    assert named <= catalogue
    prefixes = set(re.findall(r"""\bt\(["']([a-z_]+\.[a-z0-9_]*)["'] ?~""", code)) | {"field."}
    pages = {path.stem for path in (ROOT / "studio" / "locales" / "en").glob("*.json")}
    quoted = {text for text in re.findall(r"""["']([a-z_]+\.[a-z0-9_]+)["']""", code) if text.split(".")[0] in pages}
    unused = {key for key in catalogue if key not in quoted and not key.startswith(tuple(prefixes))}
    assert not unused


class _Words(HTMLParser):
    """A parser of the texts that a page shows or gives to screen readers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attributes if name in ("title", "alt", "placeholder", "aria-label")
        ]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_carries_words_of_its_own(path: Path) -> None:
    environment = jinja2.Environment(autoescape=True)
    # Expressions become a placeholder, so that attributes stay intact; the rest are the template's own texts.
    tokens = environment.lex(path.read_text(encoding="utf-8"))
    text, inside = "", False
    for _, kind, value in tokens:
        if kind == "variable_begin":
            inside = True
        elif kind == "variable_end":
            inside, text = False, text + "·"
        elif kind == "data" and not inside:
            text += value
    words = _Words()
    words.feed(text)
    own = [word for word in words.found if re.search(r"[A-Za-z一-鿿]{2}", re.sub(r"Lithograph|Ctrl|DoRA", "", word))]
    assert not own
    assert " style=" not in text, "inline styles are refused by the policy"
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|javascript:", text)


def test_everything_is_here_with_its_licence() -> None:
    for path in (STATIC_FOLDER / "vendor").glob("*.js"):
        library = path.name.partition(".")[0]
        assert (path.parent / f"{library}.LICENSE.txt").read_text(encoding="utf-8").strip(), path
    pages = "".join(path.read_text(encoding="utf-8") for path in TEMPLATES)
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", pages)
    assert set(LANGUAGES) == {path.name for path in (ROOT / "studio" / "locales").iterdir()}


def test_details_without_a_translation_are_in_english() -> None:
    problem = Problem(
        code="prompt_too_long", template="has 40 tokens", remedy_template="shorten it", details={"count": 40}
    )
    assert load_languages()["zh"].explain(problem) == "has 40 tokens; shorten it"


@pytest.mark.parametrize("query", ["page=x", "page=1e9", "page=" + "9" * 5000, "page="])
def test_a_query_of_the_wrong_type_is_a_mistake_with_its_field(visitor: TestClient, query: str) -> None:
    reply = visitor.get(f"/datasets/view?{query}", headers=HTML)
    assert reply.status_code == 422
    assert "page" in reply.text
    assert "<html" in reply.text


@pytest.mark.parametrize(
    ("page", "nearest"),
    [
        ("/train/import", "/train"),
        ("/datasets/add?x=1", "/datasets"),
        ("/nothing/at/all", "/"),
        ("/train?job=1", "/train?job=1"),
    ],
)
def test_a_change_of_language_leads_to_a_page_never_to_an_address_that_only_takes_forms(
    visitor: TestClient, page: str, nearest: str
) -> None:
    reply = visitor.post("/preferences", data={"language": "zh"}, headers={"Referer": f"{HERE}{page}"})
    assert (reply.status_code, reply.headers["location"]) == (303, nearest)


def test_static_files_are_kept_for_ever_at_their_own_address_and_compressed(visitor: TestClient) -> None:
    address = asset_url("studio.css")
    reply = visitor.get(address, headers={"Accept-Encoding": "gzip"})
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert reply.headers["content-encoding"] == "gzip"
    assert reply.content == (STATIC_FOLDER / "studio.css").read_bytes()
    for other in ("/static/studio.css", "/static/studio.css?v=0"):
        assert visitor.get(other).headers["cache-control"] == "no-cache"


def test_every_field_that_a_page_names_has_a_label() -> None:
    options = {"c2pa_trust", "caption_model", "host", "token"}  # of the command line, which is English
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "studio").rglob("*.py"))
    fields = set(re.findall(r'field="(\w+)"', sources)) | CaptionEdit.model_fields.keys() - {"kind"}
    for language in load_languages().values():
        assert not [field for field in fields - options if language.label(field) == field], language.code
