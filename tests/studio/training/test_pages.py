"""The Datasets, Train and Jobs pages: uploads, captions, the form and its problems, import and export."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from studio.app import create_app
from studio.config import StudioConfig
from studio.context import TrainingServices
from studio.jobs.record import State
from studio.training.form import as_typed
from tests.studio.context import studio_of

HERE = "http://127.0.0.1:8001"
HTMX = {"HX-Request": "true"}


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (128, 128), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[TestClient]:
    """Return a client of a studio that does not start the queue, so that jobs stay queued."""
    (tmp_path / "root").mkdir()
    app = create_app(StudioConfig(home=tmp_path / "home", data_roots=(tmp_path / "root",)))
    with_pages = TestClient(app, base_url=HERE, follow_redirects=False, headers={"Accept": "text/html"})
    yield with_pages
    workshop_of(with_pages).close()


def workshop_of(visitor: TestClient) -> TrainingServices:
    return studio_of(visitor).training


def upload(visitor: TestClient, name: str = "cats", **headers: str) -> httpx.Response:
    given = [("a.png", png()), ("a.txt", b"a cat"), ("b.png", png("blue")), ("bad.exe", b"MZ")]
    return visitor.post(
        "/datasets", data={"name": name}, files=[("files", (file, content)) for file, content in given], headers=headers
    )


def view(visitor: TestClient, folder: Path, **query: Any) -> str:
    for headers in ({}, *[HTMX] * 60):  # the page, and what its script then asks for
        page = visitor.get("/datasets/view", params={"path": str(folder), **query}, headers=headers)
        assert page.status_code == 200
        if 'hx-trigger="load' not in page.text:
            return page.text
    raise AssertionError("the scan does not end")


@pytest.fixture
def cats(visitor: TestClient, tmp_path: Path) -> Path:
    upload(visitor)
    return tmp_path / "home" / "datasets" / "cats"


def test_an_upload_becomes_a_dataset_and_lists_the_rejected_files(visitor: TestClient, tmp_path: Path) -> None:
    assert "No datasets yet" in visitor.get("/datasets").text
    reply = upload(visitor, **HTMX)
    assert reply.status_code == 200
    assert "bad.exe" in reply.text
    assert f'hx-trigger="{reply.headers["HX-Trigger"]} from:body"' in visitor.get("/datasets").text
    assert "as no picture or caption does" in reply.text
    page = view(visitor, tmp_path / "home" / "datasets" / "cats")
    assert "b.txt does not exist" in page
    assert "a cat" in page
    assert "128x128" in page
    assert "cats" in visitor.get("/datasets").text
    taken = upload(visitor, **HTMX)
    assert taken.status_code == 422
    assert 'data-problem="name"' in taken.text
    assert "has that name already" in taken.text
    nothing = visitor.post("/datasets", data={"name": "x"}, files=[("files", ("a.exe", b"MZ"))], headers=HTMX)
    assert 'data-problem="files"' in nothing.text


def test_a_first_visit_waits_for_no_scan(visitor: TestClient, cats: Path) -> None:
    scans = workshop_of(visitor).scans
    page = visitor.get("/datasets/view", params={"path": str(cats)}).text
    assert "Checking pictures: 0 of 2" in page
    assert "key=a.png" in page
    assert not scans._running
    assert not scans.is_known(workshop_of(visitor).datasets.open(str(cats)))
    assert "128x128" in view(visitor, cats)
    assert scans.is_known(workshop_of(visitor).datasets.open(str(cats)))


def test_captions_are_edited_in_place(visitor: TestClient, cats: Path) -> None:
    form = {"path": str(cats), "key": "b.png", "caption": "一只蓝猫\na blue cat"}
    assert visitor.post("/datasets/caption", data=form, headers=HTMX).text.strip() == "Saved"
    assert (cats / "b.txt").read_text(encoding="utf-8") == "一只蓝猫\na blue cat\n"
    page = view(visitor, cats)
    assert "does not exist" not in page
    for wrong in ({"key": "../x.png"}, {"key": "a.txt"}, {"path": "/etc"}, {"caption": "a" * 20_001}):
        assert visitor.post("/datasets/caption", data=form | wrong, headers=HTMX).status_code in (404, 422)


def test_thumbnails_are_pictures_and_nothing_else_is_served(visitor: TestClient, cats: Path) -> None:
    reply = visitor.get("/datasets/thumbnail", params={"path": str(cats), "key": "a.png"})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/webp")
    for key in ("a.txt", "../../jobs", "/etc/passwd", "none.png"):
        assert visitor.get("/datasets/thumbnail", params={"path": str(cats), "key": key}).status_code == 404
    assert visitor.get("/datasets/view", params={"path": "/etc"}).status_code == 422


def test_what_is_no_picture_though_it_is_called_one_has_a_sign_in_its_place(visitor: TestClient, cats: Path) -> None:
    (cats / "broken.png").write_bytes(b"no picture")
    reply = visitor.get("/datasets/thumbnail", params={"path": str(cats), "key": "broken.png"})
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/svg+xml")
    visitor.cookies.set("language", "zh")
    assert "是文本，不是图片" in view(visitor, cats)


def test_missing_fields_of_a_start_are_still_shown_when_the_form_is_checked(visitor: TestClient) -> None:
    empty = {"model_flavour": "embedded", "resolution": "128"}
    refused = visitor.post("/train", data=empty)
    assert refused.status_code == 422
    assert 'name="submitted"' in refused.text
    lacking = "choose a dataset, or give s3://bucket/prefix"
    assert lacking in refused.text
    assert lacking not in visitor.post("/train/check", data=empty, headers=HTMX).text
    assert lacking in visitor.post("/train/check", data=empty | {"submitted": "yes"}, headers=HTMX).text


def test_what_an_imported_file_has_for_nothing_is_listed_with_it(visitor: TestClient) -> None:
    content = b'{"model_flavour": "embedded", "lora_rnak": 3, "data_backend_config": "config/backend.json"} // as it is'
    page = visitor.post("/train/import", files={"file": ("config.json", content)}).text
    notice = page[page.index("Not imported") : page.index("</div>", page.index("Not imported"))]
    assert "did you mean" in notice
    assert "config/backend.json" in notice


def test_only_what_was_uploaded_is_added_to_or_deleted(visitor: TestClient, cats: Path, tmp_path: Path) -> None:
    mine = tmp_path / "root" / "mine"
    mine.mkdir(parents=True)
    (mine / "a.png").write_bytes(png())
    more = [("files", ("c.png", png("green")))]
    assert visitor.post("/datasets/add", data={"path": str(cats)}, files=more).status_code == 303
    assert (cats / "c.png").exists()
    assert visitor.post("/datasets/add", data={"path": str(mine)}, files=more).status_code == 403
    assert visitor.post("/datasets/delete", data={"path": str(mine)}).status_code == 422
    assert visitor.post("/datasets/delete", data={"path": str(cats)}).status_code == 303
    assert not cats.exists()
    assert (mine / "a.png").exists()


def test_mistakes_stand_beside_their_fields_in_the_readers_language(visitor: TestClient) -> None:
    form = {"lora_rank": "0", "learning_rate": "fast", "resolution": "wide", "publish_to": "file:///x"}
    page = visitor.post("/train/check", data=form, headers=HTMX).text
    assert re.search(r'id="problem-lora_rank"[^>]*>too small; give at least 1<', page)
    assert re.search(r'id="problem-learning_rate"[^>]*>not a number; give a number<', page)
    assert re.search(r'id="problem-resolution"[^>]*>wide is neither a number nor WIDTHxHEIGHT; give one', page)
    assert re.search(r'id="problem-seed"[^>]*hidden>', page)
    chinese = visitor.post("/train/check", data=form, headers=HTMX | {"Accept-Language": "zh"}).text
    assert "过小；最小为 1" in chinese
    refused = visitor.post("/train", data=form)
    assert refused.status_code == 422
    assert 'value="fast"' in refused.text
    assert re.search(r'id="option-learning_rate"[^>]*aria-invalid="true"', refused.text)


def test_the_memory_plan_follows_the_form(visitor: TestClient) -> None:
    form = {"model_flavour": "embedded", "resolution": "128", "plan_for": "16", "learning_rate": "1e-3"}

    def most(**changes: str) -> str:
        page = visitor.post("/train/check", data=form | changes, headers=HTMX).text
        found = re.search(r"It fits: (\d+) MiB of 14.4 GiB", page)
        assert found, page
        return found[1]

    assert int(most(train_batch_size="32")) > int(most())


def test_a_training_needs_data_and_a_name(visitor: TestClient, cats: Path) -> None:
    page = visitor.post("/train", data={"model_flavour": "embedded"}).text
    assert "choose a dataset, or give s3://bucket/prefix" in page
    assert "no name; give lower-case letters" in page
    elsewhere = {"instance_data_dir": "/etc", "adapter_name": "x", "user_prompt_library": "/etc/passwd"}
    page = visitor.post("/train", data=elsewhere).text
    assert page.count("not below") == 2
    assert workshop_of(visitor).jobs.list() == []
    form = {"model_flavour": "embedded", "instance_data_dir": str(cats), "adapter_name": "cats", "resolution": "128"}
    reply = visitor.post("/train", data=form, headers=HTMX)
    assert reply.status_code == 204
    identity = reply.headers["hx-redirect"].removeprefix("/jobs/")
    view = workshop_of(visitor).jobs.get(identity)
    assert view.state is State.QUEUED
    config = json.loads((view.folder / "config.json").read_bytes())
    assert config["publish_to"].endswith("/home/adapters")
    assert config["resume_from_checkpoint"] == "latest"
    page = visitor.get(f"/jobs/{identity}").text
    assert "Queued" in page
    assert "cats" in visitor.get("/jobs").text
    assert str(cats) in visitor.get("/train", params={"job": identity}).text

    assert visitor.post(f"/jobs/{identity}/delete", headers=HTMX).status_code == 409
    assert visitor.post(f"/jobs/{identity}/resume").status_code == 409
    assert visitor.post(f"/jobs/{identity}/explode").status_code == 404
    assert visitor.post(f"/jobs/{identity}/stop").status_code == 303
    assert "Stopped" in visitor.get(f"/jobs/{identity}").text
    changed = visitor.get(f"/jobs/{identity}/figures", params={"state": "queued"}, headers=HTMX)
    assert (changed.status_code, changed.headers["hx-refresh"]) == (204, "true")
    assert visitor.get(f"/jobs/{identity}/metrics").json()["step"] == []
    for path in ("config.json", "../../../home/lock", "validation/%2E%2E/%2E%2E/job.json"):
        assert visitor.get(f"/jobs/{identity}/picture/{path}").status_code == 404
    assert visitor.post(f"/jobs/{identity}/delete").headers["location"] == "/jobs"
    assert visitor.get(f"/jobs/{identity}").status_code == 404


def test_files_in_and_out(visitor: TestClient) -> None:
    exported = visitor.post("/train/export", data={"model_flavour": "embedded", "lora_rank": "8"})
    assert "config.json" in exported.headers["content-disposition"]
    assert json.loads(exported.content)["lora_rank"] == 8
    page = visitor.post("/train/import", files={"file": ("config.json", exported.content)}).text
    assert re.search(r'id="option-lora_rank" name="lora_rank" value="8"', page)
    for content in (b"no json", b"[]", b"\xff\xff", b"{" + b" " * 2**20 + b"}"):
        reply = visitor.post("/train/import", files={"file": ("config.json", content)})
        assert reply.status_code == 422
        assert "is not a configuration" in reply.text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_pages_are_whole_in_both_languages(visitor: TestClient, cats: Path, language: str) -> None:
    visitor.cookies.set("language", language)
    for path in ("/datasets", "/train", "/train?flavour=final", "/jobs"):
        page = visitor.get(path)
        assert page.status_code == 200
        ids = re.findall(r'\bid="([^"]+)"', page.text)
        assert len(ids) == len(set(ids)), "an id stands for one thing"
        for name in " ".join(re.findall(r'\b(?:for|aria-labelledby)="([^"]+)"', page.text)).split():
            assert name in ids, name
    assert ("未采用" if language == "zh" else "left out") in view(visitor, cats)


@pytest.mark.parametrize("files", [[], ["a.png"]], ids=["empty", "without captions"])
def test_a_training_on_data_that_cannot_be_used_is_refused_before_it_starts(
    visitor: TestClient, tmp_path: Path, files: list[str]
) -> None:
    folder = tmp_path / "root" / "set"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(png())
    form = as_typed({"model_flavour": "embedded", "instance_data_dir": str(folder), "adapter_name": "ink"})
    reply = visitor.post("/train", data=form, headers=HTMX)
    assert reply.status_code == 422
    assert re.search(r'id="problem-instance_data_dir" hx-swap-oob="true">[^<]', reply.text)
    assert not workshop_of(visitor).jobs.list()
