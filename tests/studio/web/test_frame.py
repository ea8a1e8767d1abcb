"""Features of every page of the studio: access, browser security, two languages, readable errors."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import httpx
import jinja2
import pytest
from starlette.testclient import TestClient

from longcat.errors import UserError
from longcat.problem import Problem
from studio.app import create_app
from studio.config import StudioConfig
from studio.web.language import LANGUAGES, load_languages
from studio.web.static_files import STATIC_FOLDER, asset_url
from tests import ROOT

TEMPLATES = sorted((ROOT / "studio" / "templates").rglob("*.html"))
TOKEN = "a-token-that-nobody-guesses"
HERE = "http://127.0.0.1:8001"
HTML = {"Accept": "text/html"}


@pytest.fixture
def visitor(tmp_path: Path) -> TestClient:
    """Return a client on this machine, of a studio whose service does not answer."""
    return TestClient(create_app(StudioConfig(home=tmp_path)), base_url=HERE, follow_redirects=False)


@pytest.fixture
def stranger(tmp_path: Path) -> TestClient:
    """Return a client on another machine."""
    config = StudioConfig(home=tmp_path, host="0.0.0.0", token=TOKEN)
    return TestClient(create_app(config), base_url="http://studio.example:8001", follow_redirects=False)


def set_language(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post("/preferences", data={"language": "zh"}, headers=headers)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "localhost:9999"])
def test_on_this_machine_its_own_names_are_answered(visitor: TestClient, host: str) -> None:
    assert visitor.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.7:8001", ""])
def test_other_names_for_this_machine_are_not(visitor: TestClient, host: str) -> None:
    reply = visitor.get("/healthz", headers={"Host": host})
    assert reply.status_code == 421
    assert "127.0.0.1:8001" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8002"},
    ],
)
def test_no_other_site_changes_anything(visitor: TestClient, headers: dict[str, str]) -> None:
    reply = set_language(visitor, **headers)
    assert reply.status_code == 403
    assert "set-cookie" not in reply.headers


MALFORMED_HOSTS = [
    "[::1",
    "[",
    "]",
    "127.0.0.1:port",
    "localhost:",
    "a b",
    "user@localhost",
    "localhost/x",
    "x?y",
    "ｌocalhost",
]


@pytest.mark.parametrize("host", MALFORMED_HOSTS)
def test_what_is_no_host_is_refused_everywhere(visitor: TestClient, stranger: TestClient, host: str) -> None:
    for browser in (visitor, stranger):
        for path in (
            "/healthz",
            "/healthz/",
            "/login",
            "/nothing",
        ):  # two slashes: a redirect to it would leave the host
            reply = browser.get(path, headers=[(b"host", host.encode())])
            assert reply.status_code == 421, path


@pytest.mark.parametrize(
    "origin", ["http://[", "http://", "[", "http://[::1", "http://127.0.0.1:8001/", "127.0.0.1:8001"]
)
def test_what_is_no_origin_is_another_site(visitor: TestClient, origin: str) -> None:
    assert set_language(visitor, Origin=origin).status_code == 403


@pytest.mark.parametrize("referer", ["http://[", "http://[::1", "//[", "http://a]b"])
def test_what_is_no_referer_leads_to_the_front_page(visitor: TestClient, referer: str) -> None:
    assert set_language(visitor, Referer=referer).headers["location"] == "/"


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": HERE}])
def test_its_own_pages_and_programs_do(visitor: TestClient, headers: dict[str, str]) -> None:
    assert set_language(visitor, **headers).status_code == 303


def test_every_reply_says_what_a_browser_may_do(visitor: TestClient) -> None:
    for path in ("/generate", "/login", "/nothing", "/static/studio.js"):
        reply = visitor.get(path, headers=HTML)
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_other_machines_need_a_token(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--token"):
        StudioConfig(home=tmp_path, host="0.0.0.0")
    with pytest.raises(UserError, match="at least 16"):
        StudioConfig(home=tmp_path, host="0.0.0.0", token="short")


def test_a_stranger_is_sent_to_log_in_and_a_program_is_told(stranger: TestClient) -> None:
    assert stranger.get("/generate", headers=HTML).headers["location"] == "/login"
    refused = stranger.get("/service")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    fragment = stranger.get("/service", headers={"HX-Request": "true"})
    assert (fragment.status_code, fragment.headers["hx-redirect"]) == (401, "/login")
    assert stranger.get("/service", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert stranger.get("/service", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_logging_in_and_out(stranger: TestClient) -> None:
    assert stranger.post("/login", data={"token": "wrong"}).status_code == 401
    assert stranger.get("/service").status_code == 401
    entered = stranger.post("/login", data={"token": TOKEN})
    assert entered.headers["location"] == "/"
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert stranger.get("/service").status_code == 200
    stranger.post("/logout")
    assert stranger.get("/service").status_code == 401


def test_a_wrong_token_is_answered_late_and_the_right_one_at_once(stranger: TestClient) -> None:
    begun = time.monotonic()
    assert stranger.post("/login", data={"token": "wrong"}).status_code == 401
    assert stranger.get("/service", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert time.monotonic() - begun >= 2
    begun = time.monotonic()
    assert stranger.get("/service", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert stranger.get("/login").status_code == 200
    assert time.monotonic() - begun < 1


@pytest.mark.heavy
def test_guesses_in_parallel_are_not_checked(stranger: TestClient) -> None:
    with stranger, ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: stranger.post("/login", data={"token": "wrong"}).status_code, range(12)))
        assert sorted(set(replies)) == [401, 429]
        assert replies.count(401) == 8
        assert stranger.post("/login", data={"token": TOKEN}).status_code == 303


def test_a_cookie_is_good_after_a_restart_and_not_for_another_token(stranger: TestClient, tmp_path: Path) -> None:
    stranger.post("/login", data={"token": TOKEN})
    cookies = dict(stranger.cookies)
    for token, status in ((TOKEN, 200), ("b" * 20, 401)):
        app = create_app(StudioConfig(home=tmp_path, host="0.0.0.0", token=token))
        assert TestClient(app, base_url="http://x", cookies=cookies).get("/service").status_code == status


@pytest.mark.parametrize("forged", ["9{until}.{sign}", "1.{sign}", "{until}.", "x"])
def test_a_forged_cookie_is_worth_nothing(stranger: TestClient, forged: str) -> None:
    stranger.post("/login", data={"token": TOKEN})
    until, _, sign = stranger.cookies["studio"].partition(".")
    stranger.cookies.clear()
    stranger.cookies.set("studio", forged.format(until=until, sign=sign))
    assert stranger.get("/service").status_code == 401


def test_bodies_are_limited_also_those_that_do_not_say_how_long_they_are(visitor: TestClient) -> None:
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
def test_the_browser_says_which_language(visitor: TestClient, accepted: str, expected: str) -> None:
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


def test_every_language_says_everything() -> None:
    catalogues = load_languages()
    first, *others = catalogues.values()
    for other in others:
        assert first.messages.keys() == other.messages.keys()
        for key, text in first.messages.items():
            assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", other.messages[key])), key
    chinese = catalogues["zh"].messages
    unchanged = {key for key, text in first.messages.items() if text == chinese[key] and re.search(r"[a-z]{4}", text)}
    assert not unchanged


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


def test_details_that_do_not_fit_the_form_are_told_in_english() -> None:
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
