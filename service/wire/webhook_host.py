"""The hosts that webhooks may be sent to: the protection against SSRF, requests to internal addresses."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import httpx

from longcat.problem import Problem
from longcat.validation import ProblemValueError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_ANY_PORT = ":*"
_PORTS = range(1, 2**16)


@dataclass(frozen=True, kw_only=True)
class WebhookHost:
    """One allowed host, on one port, on every port, or on the default port of the URL's scheme."""

    host: str
    """In ASCII and lower case: an internationalized name in its ``xn--`` form."""
    port: int | None = None
    """None for the default port of the scheme."""
    any_port: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``host``, ``host:8080`` or ``host:*``; IPv6 addresses in brackets. Raises ``ProblemValueError``."""
        address, colon, _ = text.rpartition(_ANY_PORT) if text.endswith(_ANY_PORT) else (text, "", "")
        try:
            parts = urlsplit(f"//{address}")
            url = httpx.URL(f"http://{address}")
            host, port = url.raw_host.decode(), parts.port
            _check_labels(host)
        except (ValueError, httpx.InvalidURL):
            host, port, parts = "", None, urlsplit("")
        is_bare = parts.netloc == address and "@" not in address and _is_plain(address)
        if not host or not is_bare or (port is not None and (colon or port not in _PORTS)) or address.endswith(":"):
            raise ProblemValueError(
                Problem(
                    code="webhook_host_invalid",
                    template="neither a host nor a host with a port",
                    remedy_template="give HOST for the default port of http and https, HOST:PORT, or HOST:* for every port",
                )
            )
        return cls(host=host, port=port, any_port=bool(colon))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.any_port:
            return host + _ANY_PORT
        return host if self.port is None else f"{host}:{self.port}"

    def allows(self, url: httpx.URL) -> bool:
        """Return whether a URL is on this host and port."""
        default = _DEFAULT_PORTS[url.scheme]
        port = default if url.port is None else url.port
        return self.host == url.raw_host.decode() and (self.any_port or port == (self.port or default))


def _check_labels(host: str) -> None:
    """Raise ``ValueError`` for a host with a part in ``xn--`` form that stands for no name: httpx fails when it calls it."""
    for label in host.split("."):
        if label.startswith("xn--"):
            assert httpx.URL(f"http://{label}").host


def may_call(text: str, hosts: Iterable[WebhookHost]) -> bool:
    """Return True for a valid URL on an allowed host; it is parsed as by the client that calls it."""
    try:
        url = httpx.URL(text)
        has_credentials = "@" in urlsplit(text).netloc
    except (ValueError, httpx.InvalidURL):
        return False
    is_callable = url.scheme in _DEFAULT_PORTS and (url.port is None or url.port in _PORTS)
    return is_callable and _is_plain(text) and not has_credentials and any(host.allows(url) for host in hosts)


def _is_plain(text: str) -> bool:
    """Return False for text with spaces, control characters or invisible ones."""
    return text.isprintable() and not any(map(str.isspace, text))
