"""The site builds strictly, lists every option, loads nothing from other hosts, and exists in both languages."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from longcat.options import options_of
from service.config import ServiceConfig
from studio.config import StudioConfig
from tests import ROOT
from tests.studio.browser import chromium
from trainer.config.dataset_options import DatasetConfig
from trainer.config.options import TrainConfig

PAGES = (
    "index",
    "quickstart",
    "troubleshooting",
    "architecture",
    "guide/requests",
    "reference/api",
    "reference/training",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    finished = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return folder


class Fetched(HTMLParser):
    """A parser that collects the URLs that a browser loads by itself, which excludes links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag != "a":
            self.found += [value for name in ("src", "srcset", "data", "poster") if (value := attributes.get(name))]
        if tag == "link" and attributes.get("rel") not in ("canonical", "alternate", "next", "prev"):
            self.found.append(attributes["href"] or "")


def test_pages_and_styles_refer_to_no_other_host(built: Path) -> None:
    for page in built.rglob("*.html"):
        reader = Fetched()
        reader.feed(page.read_text(encoding="utf-8"))
        assert reader.found
        assert not [address for address in reader.found if urlsplit(address).netloc], page
    for style in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_links_lead_somewhere(built: Path) -> None:
    for page in built.rglob("*.html"):
        for address in re.findall(r'<a [^>]*href="([^"]+)"', page.read_text(encoding="utf-8")):
            parts = urlsplit(address)
            if not parts.netloc and not parts.scheme and parts.path and not parts.path.startswith("/"):
                assert (page.parent / parts.path).exists(), f"{page.relative_to(built)}: {address}"


@pytest.mark.parametrize(
    "name",
    [*sorted(page.name for page in ROOT.glob("*.md")), "loadtest/README.md", "benchmarks/README.md"],
)
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    addresses = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [address for address in addresses if not urlsplit(address).scheme]
    assert not [address for address in local if not ((ROOT / name).parent / address).exists()]


@pytest.mark.parametrize("folder", ["", "zh"])
def test_every_option_is_listed(built: Path, folder: str) -> None:
    training = (built / folder / "reference" / "training.html").read_text(encoding="utf-8")
    service = (built / folder / "reference" / "service.html").read_text(encoding="utf-8")
    names = [*TrainConfig.model_fields, *DatasetConfig.model_fields]
    assert not [name for name in names if f"<code>{name}</code>" not in training]
    known = [option for kind in (ServiceConfig, StudioConfig) for option in options_of(kind)]
    options = [name for o in known for name in (o.name, *([o.file_name] if o.flag.is_secret else []))]
    assert not [name for name in options if f"<code>{name}</code>" not in service]


def test_the_api_reference_is_what_the_service_serves(built: Path) -> None:
    dumped = subprocess.run([sys.executable, "docs/hooks/openapi.py"], cwd=ROOT, capture_output=True, check=True)
    assert dumped.stdout.strip() == (built / "reference" / "openapi.json").read_bytes().strip()
    page = (built / "reference" / "api.html").read_text(encoding="utf-8")
    for operation in ("POST /generate", "POST /v1/images/generations", "DELETE /v1/adapters/{name}", "GET /metrics"):
        assert f">{operation}<" in page
    assert "<code>guidance_scale</code>" in page


def test_a_browser_loads_nothing_from_other_hosts(built: Path) -> None:
    requested: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: requested.append(request.url))
        for name in PAGES:
            for folder in ("", "zh/"):
                page.goto((built / f"{folder}{name}.html").as_uri())
                assert page.locator("h1").first.inner_text()
        page.goto((built / "quickstart.html").as_uri())
        assert page.locator('link[hreflang="zh"]').get_attribute("href") == "zh/quickstart.html"
    assert requested
    assert not [address for address in requested if urlsplit(address).scheme in ("http", "https")]
