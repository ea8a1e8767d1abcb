"""All routes of the studio, read from the app, with strange paths, fields, files, bodies and headers: never a 500."""

import asyncio
import json
import logging
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from hypothesis import strategies as st

from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.model.flavour import Flavour
from longcat.storage.opening import open_storage
from studio.app import create_app
from studio.config import StudioConfig
from studio.generate.gallery import GalleryPicture, new_id
from studio.generate.recipe import PictureRecipe, ScaledAdapter
from studio.training.form import fields
from tests.fuzz.adapters import small
from tests.fuzz.asgi import Answer, AsgiClient
from tests.fuzz.cases import try_all
from tests.fuzz.pictures import png, zipped
from tests.fuzz.strange import NUMBERS, RAW_JSON, TEXTS, UNICODE, broken, one_of_these
from trainer.config.options import TrainConfig

_MOST_JOBS = 20
_LOOP_SECONDS = 1.0


class Studio:
    """A studio with one item of each kind; its service does not answer, and its jobs stay queued."""

    def __init__(self, home: Path, flavour: Flavour) -> None:
        self.config = StudioConfig(home=home, service_url="http://127.0.0.1:1", data_roots=(home / "root",))
        self.app = create_app(self.config)
        self.client = AsgiClient(self.app)
        self.routes, self.fields = routes(self.app), field_names(self.app)
        self._flavour = flavour
        self.gallery_id = new_id(datetime.now(UTC))
        self.dataset = home / "datasets" / "cats"
        self.refill()
        self.job_id = self._submit()

    @property
    def context(self) -> Any:
        return self.app.state.studio

    def refill(self) -> None:
        """Create the items again that a case has deleted."""
        if not (self.config.home / "gallery" / self.gallery_id).exists():
            adapters = (ScaledAdapter(name="ink"),)
            size = {"width": 64, "height": 64, "steps": 1, "guidance_scale": 1.0}
            recipe = PictureRecipe(prompt="a cat", **size, seed=1, adapters=adapters)
            picture = GalleryPicture(
                id=self.gallery_id, created=datetime.now(UTC), recipe=recipe, flavour="embedded",
                model_hash="0" * 64, seconds=1,
                drawn_prompt="",
            )  # fmt: skip
            self.context.gallery.add(png(), picture)
        if not (self.dataset / "a.png").exists() or not (self.dataset / "a.txt").exists():
            self.dataset.mkdir(parents=True, exist_ok=True)
            (self.dataset / "a.png").write_bytes(png())
            (self.dataset / "a.txt").write_text("a cat")
        for folder in (self.config.home / "datasets").iterdir():
            if folder != self.dataset:
                shutil.rmtree(folder)
        if not (self.config.home / "adapters" / "ink" / "latest").exists():
            storage, weights = open_storage(self.config.adapters_uri), small()
            manifest = publish_lora(storage, "ink", draft_of(weights, self._flavour, origin="trained"), weights)
            set_latest(storage, "ink", manifest.version)
        jobs = self.context.training.jobs
        views = jobs.list()
        if len(views) > _MOST_JOBS or all(view.job.id != getattr(self, "job_id", "") for view in views):
            for view in views:
                shutil.rmtree(self.config.home / "jobs" / view.job.id, ignore_errors=True)
            self.job_id = self._submit()
        self.client.run(self.context.generations.close())

    def _submit(self) -> str:
        config = TrainConfig(instance_data_dir=str(self.dataset), adapter_name="ink", model_flavour="embedded")
        return str(self.context.training.jobs.submit(config, name="ink", executor="local").id)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, flavour: Flavour) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("studio")
    (home / "root").mkdir()
    made = Studio(home, flavour)
    yield made
    made.context.training.close()
    made.client.close()


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return an OpenAPI document of the studio, which it does not publish itself."""
    return get_openapi(title="studio", version="0", routes=app.routes)


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Return method and path of each route."""
    found = [(method.upper(), path) for path, methods in openapi(app)["paths"].items() for method in methods]
    return [
        *found,
        ("GET", "/static/{path}"),
        ("GET", "/{nothing}"),
        ("OPTIONS", "/generate"),
        ("PUT", "/jobs/{identity}"),
    ]


PATHS = one_of_these([
    ".", "..", "~", "~nosuchuser/x", "/", "/etc/passwd", "\0", "a\0b", "x" * 5_000, "%00", "../../etc/passwd", "a.png", "file:///etc/passwd",
    "\\", "s3://bucket/x", "/proc/self/mem", "/dev/zero", "a.png/", "./a.png", "A.PNG", "a.txt", "sub/../a.png", "*", "?",
])  # fmt: skip
LITERALS = one_of_these(
    [
        "1",
        "0",
        "-1",
        "9" * 5_000,
        "1e3",
        "NaN",
        "true",
        "on",
        "",
        "null",
        "٣",
        "embedded",
        "final",
        "textfile",
        "queued",
    ]
)
FILES = st.one_of(
    st.just(png()),
    st.just(zipped([("a.png", png()), ("a.txt", b"a cat")])),
    broken(st.just(zipped([("a.png", png()), ("b/c.png", png())]))),
    RAW_JSON,
    st.binary(max_size=60),
)
FILE_NAMES = one_of_these(
    [
        "a.png",
        "z.zip",
        "config.json",
        "x.safetensors",
        "adapter_config.json",
        "",
        "../a.png",
        "a\r\nb.png",
        "一.txt",
        '"',
        "\0",
    ]
)
HEADERS = one_of_these([
    (b"hx-request", b"true"), (b"accept", b"text/html"), (b"accept-language", b"zh;q=nan"),
    (b"accept-language", b"zh;q=1e999,en;q=x,;q="),
    (b"cookie", b"language=zh; theme=dark; studio=x"), (b"cookie", b"\xff=\xfe;;=="), (b"cookie",
    b"language=" + b"x" * 5_000),
    (b"referer", b"http://[::1"), (b"referer", b"\xff"), (b"content-length", b"9" * 5_000), (b"content-length",
    b"-1"), (b"range", b"bytes=9-1,x"),
    (b"range", b"bytes=0-0,1-1,2-2"), (b"if-none-match", b'"\xff"'), (b"authorization", b"bearer \xff"),
    (b"sec-fetch-site", b"none"),
    (b"if-modified-since", b"Thu, 99 Foo 99999 99:99:99 GMT"), (b"origin", b"http://127.0.0.1:8001"),
    (b"x-forwarded-proto", b"\xff"),
    (b"hx-current-url", b"http://["), (b"if-range", b"x"), (b"accept-encoding", b"gzip;q=x"),
])  # fmt: skip
BOUNDARIES = one_of_these([b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=x",
                           b"multipart/form-data; boundary=" + b"x" * 500,
                           b"application/x-www-form-urlencoded; charset=utf-7",
                           b"application/json", b"\xff", b"text/plain"])  # fmt: skip


def known(studio: Studio) -> dict[str, list[str]]:
    """Return names of existing items by the field or path parameter that takes them."""
    return {
        "identity": [studio.job_id], "name": ["ink", "cats2", "ink@1"], "version": ["1"], "picture_id": [studio.gallery_id],
        "like": [studio.gallery_id], "before": [studio.gallery_id, "zzz"], "action": ["stop", "kill", "resume",
        "delete", "pin", "unpin"],
        "path": [str(studio.dataset), str(studio.config.home / "root"), "validation/x.png", "studio.css"],
        "key": ["a.png", "validation/cat.png"], "dataset": [str(studio.dataset)], "job": [studio.job_id],
        "seen": ["", "ink", "0"],
        "adapter": ["ink", "ink@1"], "scale:ink": ["1", "nan", "-2"], "language": ["zh", "en"],
        "theme": ["dark"], "caption": ["a dog"],
        "instance_data_dir": [str(studio.dataset)], "adapter_name": ["ink"], "model_flavour": ["embedded"],
        "executor": ["local"],
        "prompt": ["a cat"], "num_images": ["1"], "width": ["64"], "page": ["1"], "caption_strategy": ["csv",
        "json"], "state": ["queued"],
        "after": ["0"], "flavour": ["embedded", "dev"], "resolution": ["128", "1024x1024,64x64"], "trigger_words": ["a, b"],
    }  # fmt: skip


def field_names(app: FastAPI) -> list[str]:
    """Return every name that a route takes in its path, query or form."""
    described = [method for methods in openapi(app)["paths"].values() for method in methods.values()]
    queries = {parameter["name"] for method in described for parameter in method.get("parameters", ())}
    forms = {
        "prompt",
        "negative_prompt",
        "width",
        "height",
        "steps",
        "guidance_scale",
        "seed",
        "num_images",
        "adapter",
        "scale:ink",
    }
    others = {
        "path",
        "key",
        "caption",
        "name",
        "token",
        "language",
        "theme",
        "executor",
        "submitted",
        "plan_for",
        "trigger_words",
    }
    return sorted({*queries, *forms, *others, *fields()})


@st.composite
def requests(draw: st.DrawFn, studio: Studio) -> tuple[str, bytes, list[tuple[bytes, bytes]], bytes]:
    """Return method, target, headers and body of a request to one of the routes."""
    method, path = draw(st.sampled_from(studio.routes))
    values = known(studio)

    def value(name: str) -> str:
        right = one_of_these(values.get(name, ["1"]))
        return draw(st.one_of(right, right, right, UNICODE, PATHS, LITERALS, NUMBERS.map(str)))

    target = re.sub(
        r"\{(\w+)(:\w+)?\}", lambda part: quote(value(part[1]), safe=draw(st.sampled_from(["", "/"]))), path
    )
    names = draw(st.lists(st.sampled_from(studio.fields), max_size=5))
    names += draw(
        st.lists(st.sampled_from(["path", "key", "name", "prompt", "instance_data_dir", "adapter_name"]), max_size=4)
    )
    pairs = [(name, value(name)) for name in names]
    if method == "GET":
        target += "?" + "&".join(f"{quote_plus(name)}={quote_plus(text)}" for name, text in pairs)
    if draw(st.integers(0, 9)) == 0:
        target += draw(
            one_of_these(
                ["?", "?&&=&", "?path=%ff%fe&key=%00", "?seen[]=1&=x", "#", "//", "/%2e%2e/", "%", "?a=" + "%" * 50]
            )
        )
    headers, body = [(b"host", b"127.0.0.1:8001")], b""
    if method in ("POST", "PUT"):
        kind, body = draw(bodies(pairs))
        headers.append((b"content-type", kind))
    headers += draw(st.lists(HEADERS, max_size=2, unique_by=lambda header: header[0]))
    return method, target.encode("ascii", "replace"), headers, body


@st.composite
def bodies(draw: st.DrawFn, pairs: list[tuple[str, str]]) -> tuple[bytes, bytes]:
    """Return type and content of a form with some fields, with or without files, or broken."""
    data: dict[str, Any] = {}
    for name, text in pairs:
        data.setdefault(name, []).append(text)
    files = [
        (draw(st.sampled_from(["files", "file", "path"])), (draw(FILE_NAMES), draw(FILES)))
        for _ in range(draw(st.sampled_from([0, 0, 1, 2])))
    ]
    request = httpx.Request("POST", "http://x/", data=data, files=files or None)
    content, kind = request.read(), request.headers.get("content-type", "").encode()
    match draw(st.integers(0, 11)):
        case 0:
            content = draw(broken(st.just(content)))
        case 1:
            kind = draw(BOUNDARIES)
        case 2:
            content = draw(
                st.one_of(
                    st.binary(max_size=100), RAW_JSON, TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass"))
                )
            )
    return kind, content


def test_every_route_is_known_and_its_fields_have_values(studio: Studio) -> None:
    names = {name for _, path in routes(studio.app) for name in re.findall(r"\{(\w+)", path)}
    assert names - known(studio).keys() <= {"generation_id", "nothing"}
    assert len(routes(studio.app)) > 50


def check_answer(
    request: tuple[str, bytes, list[tuple[bytes, bytes]], bytes], answer: Answer, log: pytest.LogCaptureFixture
) -> None:
    errors = [record for record in log.records if record.levelno >= logging.ERROR]
    assert not errors, errors[0].exc_info and errors[0].exc_info[1]
    assert answer.status != 500, request
    assert answer.status < 500 or answer.status in (502, 503, 504), request
    assert answer.loop_seconds < _LOOP_SECONDS, f"{answer.loop_seconds:.1f} s on the event loop"
    headers = dict(answer.headers)
    assert b"content-security-policy" in headers
    assert b"traceback" not in answer.body.lower()
    if headers.get(b"content-type", b"").startswith(b"application/json"):
        json.loads(answer.body)
    assert not any(b"\r" in value or b"\n" in value for _, value in answer.headers)


@pytest.mark.heavy
def test_no_request_to_the_studio_is_answered_with_500(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    statuses: set[int] = set()

    def check(request: tuple[str, bytes, list[tuple[bytes, bytes]], bytes]) -> None:
        caplog.clear()
        studio.refill()
        answer = studio.client.send(*request)
        check_answer(request, answer, caplog)
        statuses.add(answer.status)

    try_all("studio", check, requests(studio), cases=150)
    assert {200, 303, 404, 422} <= statuses


def test_pages_are_shown_for_what_names_something(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    values = known(studio)
    for method, path in routes(studio.app):
        if method == "GET" and "{nothing}" not in path and "{generation_id}" not in path:
            target = re.sub(r"\{(\w+)(:\w+)?\}", lambda part: quote(values[part[1]][0]), path)
            answer = studio.client.send(
                "GET", f"{target}?path={quote(str(studio.dataset))}".encode(), [(b"host", b"localhost")], b""
            )
            check_answer((method, target.encode(), [], b""), answer, caplog)
    asyncio.run(asyncio.sleep(0))
