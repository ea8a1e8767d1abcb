"""Loading, pinning and removing adapters over HTTP, with the administrator's key."""

import json
from pathlib import Path

import httpx
import pytest

from longcat.adapter.modules import lora_targets
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from tests.conftest import RunningServer
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put
from tests.service.http.adapters.conftest import KEY, wait_until, with_adapters


def test_what_an_administrator_changes_is_logged_with_the_id_of_the_request(
    adapters_server: RunningServer, http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    put(storage, model, tmp_path, "told", random_lora(lora_targets(model.transformer), seed=1))
    lora = {"lora_name": "told", "lora_path": "told"}
    requests = (
        ("POST", "/v1/adapters/told/load", "load", {}),
        ("POST", "/v1/adapters/told/unload", "unload", {}),
        ("POST", "/v1/load_lora_adapter", "load", {"json": lora}),
        ("POST", "/v1/unload_lora_adapter", "unload", {"json": {"lora_name": "told"}}),
        ("DELETE", "/v1/adapters/told", "remove", {}),
    )
    for method, path, action, fields in requests:
        reply = http.request(method, path, headers=KEY, **fields)
        assert reply.status_code == 200, reply.text
        told = [line for line in adapters_server.log_text().splitlines() if reply.headers["x-request-id"] in line]
        (line,) = [json.loads(line) for line in told]
        assert (line["event"], line["action"], line["adapter"]) == ("adapter_action", action, "told")


def test_changing_adapters_takes_the_key(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    put(storage, model, tmp_path, "key", random_lora(lora_targets(model.transformer), seed=1))
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert http.post("/v1/adapters/key/pin", headers=headers).status_code == 401
        assert http.delete("/v1/adapters/key", headers=headers).status_code == 401
    assert http.post("/v1/adapters/key/unload", headers=KEY).status_code in (200, 404)
    assert http.post("/v1/adapters/key/load", headers=KEY).status_code == 200
    wait_until(http, "key", state="ready", pinned=False)
    reply = http.post("/v1/adapters/key/pin", headers=KEY)
    assert (reply.status_code, "pinned already" in reply.text) == (422, True)  # one request may use all four slots
    assert http.post("/v1/adapters/key/polish", headers=KEY).status_code == 404
    assert http.post("/v1/adapters/key/unload", headers=KEY).status_code == 200
    assert http.post("/generate", json=with_adapters(("key", 1.0))).status_code == 404
    unknown = http.delete("/v1/adapters/nobody", headers=KEY)
    assert (unknown.status_code, unknown.json()["error"]["problems"][0]["field"]) == (404, "name")


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer secret", 404), ("bearer secret", 404), ("BEARER  secret", 404),
        ("Bearer Secret", 401), ("Basic secret", 401), ("secret", 401), ("Bearer", 401), ("", 401), ("Bearer sécret", 401),
    ],
)  # fmt: skip
def test_the_scheme_of_the_admin_key_has_no_case(http: httpx.Client, given: str, status: int) -> None:
    reply = http.post("/v1/adapters/missing/load", headers={"Authorization": given.encode("latin-1")})
    assert reply.status_code == status


def test_a_request_without_the_key_gets_no_other_answer(http: httpx.Client) -> None:
    for content in (b"{", b'{"unknown": 1}', b"[" * 5_000, b""):
        assert http.post("/v1/load_lora_adapter", content=content).status_code == 401


@pytest.mark.parametrize("name", ["ink@" + "9" * 300, "9" * 5_000, "%2e%2e", "ink%0a", "ink%00", "a%20b", "INK", "@"])
def test_an_invalid_adapter_name_is_refused_without_a_call_to_storage(http: httpx.Client, name: str) -> None:
    removed = http.delete(f"/v1/adapters/{name}", headers=KEY)
    assert removed.status_code == 422, removed.text
    for action in ("load", "pin"):
        changed = http.post(f"/v1/adapters/{name}/{action}", headers=KEY)
        assert changed.status_code in (404, 422), changed.text
        assert len(changed.content) < 1_500
