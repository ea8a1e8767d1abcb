"""The allowed hosts of webhooks."""

import pytest

from service.wire.webhook_host import WebhookHost, may_call


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("a.example", "http://a.example/hook"),
        ("a.example", "https://a.example/hook"),
        ("a.example", "https://a.example:443/hook?key=1#part"),
        ("A.Example", "HTTPS://A.EXAMPLE/钩子"),
        ("a.example:8080", "http://a.example:8080"),
        ("a.example:80", "http://a.example/"),
        ("a.example:*", "http://a.example:65535/"),
        ("a.example:*", "http://a.example/"),
        ("bücher.example", "http://bücher.example/"),
        ("bücher.example", "http://xn--bcher-kva.example/"),
        ("xn--bcher-kva.example", "http://BÜCHER.example/"),
        ("[::1]", "http://[::1]/"),
        ("[::1]:8080", "http://[::1]:8080/"),
        ("[::1]:*", "http://[::1]:1/"),
        ("127.0.0.1:*", "http://127.0.0.1:9000/"),
    ],
)
def test_allowed(host: str, url: str) -> None:
    assert may_call(url, [WebhookHost.parse("other"), WebhookHost.parse(host)])


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example:8080/",
        "http://a.example:443/",
        "https://a.example:80/",
        "http://a.example:0/",
        "http://a.example:99999/",
        "http://a.example:x/",
        "http://a.example:-80/",
        " http://a.example/",
        "http://a.example/ ",
        "http://a.example/\n",
        "http://a.example/a b",
        "http://a.example/\u00a0",
        "http://a.example/\u200b",
        "http://a.example/\ud800",
        "http://a.example\t/",
        "\thttp://a.example/",
        "http://a\x00.example/",
        "http://me@a.example/",
        "http://me:you@a.example/",
        "http://@a.example/",
        "http://evil.example@a.example/",
        "http://a.example\\@evil.example/",
        "http://a.example@evil.example/",
        "http://evil.example/http://a.example/",
        "http://evil.example#a.example",
        "http://a.example.evil.example/",
        "http://a.example./",
        "http://a%2eexample/",
        "ftp://a.example/",
        "//a.example/",
        "a.example",
        "http:a.example",
        "http:///a.example",
        "http://",
        "",
        "http://[::1",
        "http://[::1]/",
        "http://" + "a" * 70_000,
    ],
)
def test_refused(url: str) -> None:
    assert not may_call(url, [WebhookHost.parse("a.example")])


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "a b", " a", "a\n", "*", ":80", ":*", "a:", "a:0", "a:65536", "a:http", "a:80:*", "me@a", "@a", "a/", "a/b",
        "a?b", "a#b", "http://a", "[::1", "::1]:80", "xn--", "xn--.example", "a.xn--", "xn--a.example:80", "XN--",
    ],
)  # fmt: skip
def test_what_is_no_host_is_refused_at_the_start(text: str) -> None:
    if text == "*":  # a name as any other: it allows nothing else
        assert not may_call("http://a.example/", [WebhookHost.parse(text)])
        return
    with pytest.raises(ValueError, match="HOST:PORT"):
        WebhookHost.parse(text)


@pytest.mark.parametrize("text", ["a.example", "a.example:80", "a.example:*", "[::1]", "[::1]:80", "[::1]:*"])
def test_it_is_shown_as_it_was_given(text: str) -> None:
    assert str(WebhookHost.parse(text)) == text
