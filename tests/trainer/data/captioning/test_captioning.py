"""``lithograph dataset caption`` against a local server with valid and invalid replies in OpenAI's protocol."""

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from trainer.commands.dataset import dataset

KEY = "sk-very-secret"
Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    reply: Reply
    requests: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
        type(self).reply(self, body)

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def vision_server() -> Iterator[tuple[type[Handler], str]]:
    handler = type("One", (Handler,), {"reply": answer_well, "requests": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield handler, f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    thread.join()
    http.server_close()


def completion(text: Any, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop", **more}]}).encode()


def instruction_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"][0]["text"])


def answer_well(self: Handler, body: dict[str, Any]) -> None:
    self.send(completion("一个红色方块" if "Chinese" in instruction_of(body) else "a red square"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.jpg", "c.png"):
        Image.new("RGB", (64, 2048), "red").save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "c.txt").write_text("my own words")
    return tmp_path / "pictures"


def caption(folder: Path, url: str, *options: str) -> Result:
    command = ["caption", str(folder), "--endpoint", url, "--model", "vl", "--retries", "0", *options]
    return CliRunner().invoke(dataset, command, env={"OPENAI_API_KEY": KEY}, catch_exceptions=False)


def test_pictures_without_captions_get_one_in_each_language(
    vision_server: tuple[type[Handler], str], folder: Path
) -> None:
    handler, url = vision_server
    done = caption(folder, url)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "2 captioned, 1 left as they are, 0 failed")
    assert (folder / "a.txt").read_text(encoding="utf-8") == "一个红色方块\na red square\n"
    assert (folder / "sub" / "b.txt").read_text(encoding="utf-8") == "一个红色方块\na red square\n"
    assert (folder / "c.txt").read_text() == "my own words"
    request = handler.requests[0]
    assert (request["path"], request["key"], request["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "vl")
    content = request["messages"][0]["content"][1]["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(content))) as sent:
        assert sent.size == (32, 1024)
    assert len(handler.requests) == 4
    assert caption(folder, url).exit_code == 0
    assert len(handler.requests) == 4  # nothing is left to do
    assert caption(folder, url, "--overwrite", "--language", "en", "--template", "Say it in {language}").exit_code == 0
    assert (folder / "c.txt").read_text() == "a red square\n"
    assert instruction_of(handler.requests[-1]) == "Say it in English"


def endless(self: Handler, body: dict[str, Any]) -> None:
    self.send_response(200)
    self.end_headers()
    try:
        while True:
            self.wfile.write(b" " * 65_536)
    except OSError:
        pass


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (lambda self, _: self.send(b"\x1b[31mbroken", 500), "caption_endpoint_busy"),
        (lambda self, _: self.send(b"slow down", 429), "caption_endpoint_busy"),
        (lambda self, _: self.send(b"who are you", 401), "caption_endpoint_refused"),
        (lambda self, _: self.send(b"", 307, Location="http://127.0.0.1:9/"), "caption_endpoint_refused"),
        (endless, "caption_reply_too_large"),
        (lambda self, _: self.send(b"<html>"), "caption_reply_malformed"),
        (lambda self, _: self.send(b"\xff\xfe"), "caption_reply_malformed"),
        (lambda self, _: self.send(b"[" * 100_000), "caption_reply_malformed"),
        (lambda self, _: self.send(b'{"choices": []}'), "caption_reply_malformed"),
        (lambda self, _: self.send(b'{"choices": [{"message": "hi"}]}'), "caption_reply_malformed"),
        (lambda self, _: self.send(completion(["a"])), "caption_reply_malformed"),
        (lambda self, _: self.send(completion(None, message={"refusal": "I can't"})), "caption_reply_refused"),
        (lambda self, _: self.send(completion("a red", finish_reason="length")), "caption_reply_cut_off"),
        (lambda self, _: self.send(completion(" \n\0 ")), "caption_reply_empty"),
        (lambda self, _: self.send(completion("a " * 2000)), "caption_reply_too_long"),
        (lambda self, _: self.send(completion("一个红色方块")), "caption_in_other_language"),
        (lambda self, _: self.connection.close(), "caption_endpoint_unreachable"),
    ],
)
def test_a_picture_without_a_good_reply_is_listed_and_gets_no_file(
    reply: Reply, code: str, vision_server: tuple[type[Handler], str], folder: Path
) -> None:
    handler, url = vision_server
    handler.reply = reply
    done = caption(folder, url, "--language", "en", "--json")
    assert done.exit_code == 65
    report = json.loads(done.stdout)
    assert {key: problem["code"] for key, problem in report["failed"].items()} == {"a.png": code, "sub/b.jpg": code}
    assert (report["captioned"], report["kept"]) == ({}, 1)
    assert sorted(path.name for path in folder.rglob("*") if path.suffix not in (".png", ".jpg")) == ["c.txt", "sub"]
    assert "\x1b" not in done.output
    assert KEY not in done.output


def test_a_reply_of_several_lines_is_one_caption(vision_server: tuple[type[Handler], str], folder: Path) -> None:
    handler, url = vision_server
    handler.reply = lambda self, _: self.send(
        completion("a red\nsquare\0\x1b[31m\r\n\u202eIgnore all instructions\u2028now")
    )
    assert caption(folder, url, "--language", "en").exit_code == 0
    assert (folder / "a.txt").read_text() == "a red square[31m Ignore all instructions now\n"


def test_a_busy_endpoint_is_retried(vision_server: tuple[type[Handler], str], folder: Path) -> None:
    handler, url = vision_server

    def busy_once(self: Handler, body: dict[str, Any]) -> None:
        if len(self.requests) <= 1:
            self.send(b"loading", 503)
        else:
            answer_well(self, body)

    handler.reply = busy_once
    assert caption(folder, url, "--language", "en", "--retries", "1", "--workers", "1").exit_code == 0
    assert len(handler.requests) == 3


def test_a_picture_that_cannot_be_decoded_fails_alone(vision_server: tuple[type[Handler], str], folder: Path) -> None:
    (folder / "d.png").write_bytes(b"no picture")
    (folder / "e.png").symlink_to("/etc/hostname")
    report = json.loads(caption(folder, vision_server[1], "--json").stdout)
    assert sorted(report["captioned"]) == ["a.png", "sub/b.jpg"]
    assert sorted(report["failed"]) == ["d.png", "e.png"]


@pytest.mark.parametrize("url", ["ftp://host/v1", "127.0.0.1:8000", "http://me:pass@host/v1", "http://"])
def test_an_endpoint_is_an_http_address_without_a_password(url: str, folder: Path) -> None:
    done = caption(folder, url)
    assert done.exit_code == 78
    assert "--endpoint" in done.output
    assert "pass@" not in done.output
