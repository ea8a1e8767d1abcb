"""Access to the studio: hosts, origins, tokens and cookies."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from longcat.errors import UserError
from studio.app import create_app
from studio.config import StudioConfig
from tests.studio.web.visitors import HERE, HTML, set_language

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
def stranger(tmp_path: Path) -> TestClient:
    """Return a client on another machine."""
    config = StudioConfig(home=tmp_path, host="0.0.0.0", token=TOKEN)
    return TestClient(create_app(config), base_url="http://studio.example:8001", follow_redirects=False)


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


def test_every_reply_has_a_content_security_policy(visitor: TestClient) -> None:
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


def test_without_a_login_a_browser_is_redirected_and_a_program_gets_an_error(stranger: TestClient) -> None:
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
