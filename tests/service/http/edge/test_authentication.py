"""API keys over HTTP: who may send which request, and what another key sees of it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import lithograph
from longcat.adapter.modules import lora_targets
from longcat.model.loading import Components
from longcat.storage.opening import open_storage
from service.access.keys import ApiKeys, hash_of, make_key
from tests.conftest import RunningServer, run_lithograph, serve
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put
from tests.service.http.replies import metric

CAT = {"prompt": "一只猫", "seed": 3, "steps": 2}
ADMIN_KEY = "an-older-admin-key"
KEYS = {
    "team-a": {"roles": ["generate"], "adapters": ["team-a-*"]},
    "team-b": {"roles": ["generate"], "adapters": ["team-b-*"]},
    "ci": {"roles": ["adapters"], "adapters": ["team-a-*"]},
    "free": {"roles": ["generate"], "adapters": None},
    "ops": {"roles": ["admin"], "adapters": None},
}
OPEN = ("/", "/docs", "/docs-assets/favicon.png", "/openapi.json", "/healthz", "/readyz")
ROUTES = (
    ("POST", "/generate"), ("POST", "/v1/tokens"), ("POST", "/v1/images/generations"), ("GET", "/v1/models"),
    ("GET", "/v1/models/embedded"), ("GET", "/v1/jobs/x"), ("DELETE", "/v1/jobs/x"), ("GET", "/v1/jobs/x/result"),
    ("GET", "/v1/adapters"), ("POST", "/v1/adapters/team-a-ink/load"), ("DELETE", "/v1/adapters/team-a-ink"),
    ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("GET", "/v1/info"), ("GET", "/metrics"),
    ("GET", "/v1/usage"), ("GET", "/nothing"), ("PUT", "/generate"), ("POST", "/generate/"),
)  # fmt: skip


class Guarded:
    """A running server with keys."""

    def __init__(self, server: RunningServer, file: Path, secrets: dict[str, str]) -> None:
        self.server, self.file, self.secrets = server, file, secrets

    def client(self, name: str | None = None, **headers: str) -> httpx.Client:
        if name is not None:
            headers["Authorization"] = f"Bearer {self.secrets[name]}"
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, model: Components) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    storage = open_storage((folder / "adapters").as_uri())
    for seed, name in enumerate(("team-a-ink", "team-b-ink")):
        put(storage, model, folder, name, random_lora(lora_targets(model.transformer), seed=seed))
    known, secrets = ApiKeys(), {}
    for name, fields in KEYS.items():
        secrets[name], entry = make_key(name, roles=fields["roles"] or (), adapters=fields["adapters"])
        known = known.with_key(entry)
    file = folder / "keys.json"
    file.write_text(known.to_json())
    options = ("--api-keys-file", str(file), "--admin-key", ADMIN_KEY, "--adapter-poll-seconds", "0.3")
    with serve(folder, "--adapters", storage.uri, *options) as server:
        yield Guarded(server, file, secrets)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic dXNlcg==", "Bearer", "Bearer \udce9\udcff"])
def test_no_route_answers_without_a_key(guarded: Guarded, method: str, path: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode("utf-8", "surrogateescape")}
    with guarded.client() as http:
        reply = http.request(method, path, headers=headers, content=b"{")
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), reply.text
    assert reply.headers["x-request-id"]
    if path.startswith(("/v1/images", "/v1/models")):
        assert reply.json()["error"]["type"] == "authentication_error"


def test_two_authorization_headers_are_no_key(guarded: Guarded) -> None:
    given = f"Bearer {guarded.secrets['free']}"
    with guarded.client() as http:
        reply = http.get("/v1/models", headers=[("Authorization", given), ("Authorization", given)])
    assert reply.status_code == 401


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_documentation_need_no_key(guarded: Guarded, path: str) -> None:
    with guarded.client() as http:
        assert http.get(path).status_code in (200, 307)
        assert http.options("/generate").status_code == 204


def test_a_wrong_key_is_answered_late_and_counted(guarded: Guarded) -> None:
    with guarded.client("ops") as ops, guarded.client() as http:
        before, begin = metric(ops, "lithograph_api_key_refusals_total", reason="unknown"), time.monotonic()
        assert http.get("/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert time.monotonic() - begin > 0.4
        assert metric(ops, "lithograph_api_key_refusals_total", reason="unknown") == before + 1


def test_roles_decide_what_a_key_may_do(guarded: Guarded) -> None:
    statuses: dict[str, list[int]] = {}
    for name in KEYS:
        with guarded.client(name) as http:
            statuses[name] = [
                http.post("/generate", json=CAT).status_code,
                http.get("/v1/adapters").status_code,
                http.post("/v1/adapters/team-a-ink/load").status_code,
                http.get("/metrics").status_code,
            ]
    assert statuses == {
        "team-a": [200, 200, 403, 403],
        "team-b": [200, 200, 403, 403],
        "ci": [403, 200, 200, 403],
        "free": [200, 200, 403, 403],
        "ops": [200, 200, 200, 200],
    }
    with guarded.client(Authorization=f"Bearer {ADMIN_KEY}") as http:
        assert http.get("/metrics").status_code == 200
        assert http.post("/v1/adapters/team-b-ink/load").status_code == 200


def requests_about(adapter: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return a request of each kind that names an adapter."""
    image = {"prompt": "a cat", "n": 1}
    return [
        ("POST", "/generate", CAT | {"adapters": [{"name": adapter}]}),
        ("POST", "/generate", CAT | {"adapters": [{"name": adapter, "scale": 0.5}], "stream": True}),
        ("POST", "/generate", CAT | {"adapters": [{"name": adapter}], "async": True}),
        ("POST", "/v1/images/generations", image | {"model": adapter}),
        ("POST", "/v1/images/generations", image | {"model": adapter, "stream": True}),
        ("POST", "/v1/images/generations", image | {"adapters": [{"name": adapter}]}),
        ("POST", f"/v1/adapters/{adapter}/load", {}),
        ("POST", f"/v1/adapters/{adapter}/pin", {}),
        ("POST", f"/v1/adapters/{adapter}/unpin", {}),
        ("POST", f"/v1/adapters/{adapter}/unload", {}),
        ("DELETE", f"/v1/adapters/{adapter}", {}),
        ("POST", "/v1/load_lora_adapter", {"lora_name": adapter, "lora_path": adapter}),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": adapter}),
    ]


@pytest.mark.parametrize("key", ["team-a", "ci"])
def test_an_adapter_of_others_looks_like_one_that_does_not_exist(guarded: Guarded, key: str) -> None:
    with guarded.client(key) as http:
        replies = {
            name: [http.request(method, path, json=body) for method, path, body in requests_about(name)]
            for name in ("team-b-ink", "team-b-ink@1", "team-b-not")
        }
    for other, absent in zip(replies["team-b-ink"], replies["team-b-not"], strict=True):
        assert other.status_code == absent.status_code, (other.request.url, other.text, absent.text)
        assert other.status_code in (403, 404)
        texts = [reply.text.replace(reply.headers["x-request-id"], "ID") for reply in (other, absent)]
        assert texts[0].replace("team-b-ink", "NAME") == texts[1].replace("team-b-not", "NAME")
    assert {reply.status_code for reply in replies["team-b-ink@1"]} <= {403, 404}


def test_lists_show_a_key_its_adapters_alone(guarded: Guarded) -> None:
    with guarded.client("ops") as http:
        for name in ("team-a-ink", "team-b-ink"):
            assert http.post("/generate", json=CAT | {"adapters": [{"name": name}]}).status_code == 200
        everything = http.get("/v1/adapters").json()
    assert {a["name"] for a in everything["adapters"]} == {"team-a-ink", "team-b-ink", "turbo"}
    with guarded.client("team-a") as http:
        seen = http.get("/v1/adapters")
        assert [a["name"] for a in seen.json()["adapters"]] == ["team-a-ink"]
        models = http.get("/v1/models")
        assert [card["id"] for card in models.json()["data"]] == ["embedded", "team-a-ink"]
        assert http.get("/v1/models/team-a-ink@1").status_code == 200
        for hidden in ("team-b-ink", "team-b-ink@1", "team-b-not"):
            assert http.get(f"/v1/models/{hidden}").status_code == 404
        info = http.get("/v1/info")
        assert http.post("/generate", json=CAT | {"adapters": [{"name": "team-a-ink"}]}).status_code == 200
    for reply in (seen, models, info):
        assert "team-b" not in reply.text


def test_the_jobs_of_a_key_are_its_own(guarded: Guarded) -> None:
    with guarded.client("team-a") as a, guarded.client("team-b") as b, guarded.client("ops") as ops:
        made = a.post("/generate", json=CAT | {"async": True})
        address = made.headers["location"]
        absent = "/v1/jobs/" + "0" * len(made.json()["id"])
        for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
            other, missing = b.request(method, address + path), b.request(method, absent + path)
            assert other.status_code == missing.status_code == 404
        deadline = time.monotonic() + 60
        while a.get(address).json()["status"] in ("queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert a.get(f"{address}/result").headers["content-type"] == "image/png"
        assert ops.get(address).json()["status"] == "succeeded"
        assert a.delete(address).status_code == 200


def test_the_clients_send_their_key(guarded: Guarded, tmp_path: Path) -> None:
    url, secret = guarded.server.url, guarded.secrets["team-a"]
    with lithograph.Client(url, api_key=secret) as client:
        assert client.generate("一只猫", steps=2).images
    with lithograph.Client(url) as client, pytest.raises(lithograph.ServiceError, match="carries no API key"):
        client.generate("一只猫", steps=2)
    with lithograph.Client(url, api_key=secret) as client, pytest.raises(lithograph.RequestError, match=r"team-a-\*"):
        client.generate("一只猫", steps=2, adapters={"team-b-ink": 1.0})
    theirs = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
    assert theirs.images.generate(prompt="a cat", model="team-a-ink").data
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.PermissionDeniedError):
        theirs.images.generate(prompt="a cat", model="team-b-ink")
    (tmp_path / "key").write_text(secret + "\n")
    options = ("--steps", "2", "--server", url, "--api-key-file", "key", "-o", "cat.png")
    made = run_lithograph("generate", "一只猫", *options, cwd=tmp_path)
    assert (made.returncode, (tmp_path / "cat.png").exists()) == (0, True), made.stderr


def test_a_removed_key_stops_working_and_nothing_of_it_was_logged(guarded: Guarded) -> None:
    secret, entry = make_key("leaver", roles=["generate"], adapters=None)
    known = ApiKeys.read(guarded.file)
    guarded.file.write_text(known.with_key(entry).to_json())
    headers = {"Authorization": f"Bearer {secret}"}

    def wait_for(status: int) -> None:
        deadline = time.monotonic() + 30
        while httpx.get(f"{guarded.server.url}/v1/models", headers=headers).status_code != status:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    wait_for(200)
    reply = httpx.post(f"{guarded.server.url}/generate", json=CAT, headers=headers, timeout=60)
    assert reply.status_code == 200
    guarded.file.write_text(known.to_json())
    wait_for(401)
    log = guarded.server.log_text()
    lines = [json.loads(line) for line in log.splitlines() if reply.headers["x-request-id"] in line]
    assert [line["key"] for line in lines] == ["leaver"]
    shown = [*guarded.secrets.values(), secret, ADMIN_KEY]
    assert not {text for text in (*shown, *map(hash_of, shown)) if text in log}


def test_a_server_without_a_valid_file_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    for name in ("keys.json", "missing.json"):
        ended = run_lithograph("serve", "--port", "8999", "--api-keys-file", str(tmp_path / name), cwd=tmp_path)
        assert ended.returncode != 0
        assert "is no file of API keys" in ended.stderr
        assert "Traceback" not in ended.stderr
