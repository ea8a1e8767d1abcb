"""The site: it builds strictly, says every option, asks nothing of the network, and can be read in both languages."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.commands import serve
from service.config import AdapterConfig, JobConfig, ModelConfig, ServiceConfig
from tests.studio_browser import chromium
from trainer.config import TrainConfig
from trainer.dataset_config import DatasetConfig

ROOT = Path(__file__).parent.parent
PAGES = ("index", "quickstart", "troubleshooting", "architecture", "reference/api", "reference/training")


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
    """Addresses that a browser asks for by itself: not those of links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag != "a":
            self.found += [value for name in ("src", "srcset", "data", "poster") if (value := said.get(name))]
        if tag == "link" and said.get("rel") not in ("canonical", "alternate", "next", "prev"):
            self.found.append(said["href"] or "")


def test_pages_and_styles_refer_to_nothing_outside(built: Path) -> None:
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


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "loadtest/README.md", "benchmarks/README.md"])
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    said = (ROOT / name).read_text(encoding="utf-8")
    addresses = re.findall(r"\]\(([^)#\s]+)[^)]*\)", said) + re.findall(r'src="([^"]+)"', said)
    local = [address for address in addresses if not urlsplit(address).scheme]
    assert not [address for address in local if not ((ROOT / name).parent / address).exists()]


@pytest.mark.parametrize("folder", ["", "zh"])
def test_every_option_is_there(built: Path, folder: str) -> None:
    training = (built / folder / "reference" / "training.html").read_text(encoding="utf-8")
    service = (built / folder / "reference" / "service.html").read_text(encoding="utf-8")
    names = [*TrainConfig.model_fields, *DatasetConfig.model_fields]
    assert not [name for name in names if f"<code>{name}</code>" not in training]
    fields = [name for kind in (ModelConfig, AdapterConfig, JobConfig) for name in kind.__dataclass_fields__]
    fields += [name for name in ServiceConfig.__dataclass_fields__ if name not in ("model", "adapters", "jobs")]
    options = [option.opts[-1] for option in serve.params]
    assert not [name for name in (*fields, *options) if f"<code>{name}</code>" not in service]


def test_the_api_reference_is_what_the_service_serves(built: Path) -> None:
    dumped = subprocess.run([sys.executable, "docs/hooks/openapi.py"], cwd=ROOT, capture_output=True, check=True)
    assert dumped.stdout.strip() == (built / "reference" / "openapi.json").read_bytes().strip()
    page = (built / "reference" / "api.html").read_text(encoding="utf-8")
    for operation in ("POST /generate", "POST /v1/images/generations", "DELETE /v1/adapters/{name}", "GET /metrics"):
        assert f">{operation}<" in page
    assert "<code>guidance_scale</code>" in page


def test_a_browser_asks_for_nothing_outside(built: Path) -> None:
    asked: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        for name in PAGES:
            for folder in ("", "zh/"):
                page.goto((built / f"{folder}{name}.html").as_uri())
                assert page.locator("h1").first.inner_text()
        page.goto((built / "quickstart.html").as_uri())
        assert page.locator('link[hreflang="zh"]').get_attribute("href") == "zh/quickstart.html"
    assert asked
    assert not [address for address in asked if urlsplit(address).scheme in ("http", "https")]
