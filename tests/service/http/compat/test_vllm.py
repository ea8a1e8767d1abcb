"""vLLM's endpoints for adapters, against a real server."""

from pathlib import Path

import httpx

from longcat.adapter.modules import lora_targets
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put
from tests.service.http.compat.conftest import APPLE, load, unload


def test_adapters_are_loaded_and_unloaded_as_vllm_does_it(
    http: httpx.Client, storage: Storage, model: Components, tmp_path: Path
) -> None:
    put(storage, model, tmp_path, "late", random_lora(lora_targets(model.transformer), seed=3))
    root = Path(storage.uri.removeprefix("file://"))
    for path in (
        f"{storage.uri}/l%61te",
        "late",
        "late/1",
        "late@1",
        f"{storage.uri}/late",
        root / "late",
        root / "late/1/adapter.safetensors",
    ):
        name = "late@1" if "1" in str(path).removeprefix(str(root)).removeprefix(storage.uri) else "late"
        reply = load(http, name, path)
        assert (reply.status_code, reply.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    assert http.post("/generate", json=APPLE | {"adapters": [{"name": "late"}]}).status_code == 200

    removed = unload(http, "late")
    assert (removed.status_code, removed.text) == (200, "Success: LoRA adapter 'late' removed successfully.")
    assert http.post("/generate", json=APPLE | {"adapters": [{"name": "late"}]}).status_code == 404
    again = unload(http, "late")
    assert (again.status_code, again.json()["error"]) == (
        404,
        {"message": "The lora adapter 'late' cannot be found.", "type": "NotFoundError", "param": None, "code": 404},
    )
    assert load(http, "late", "late").status_code == 200
    assert http.post("/generate", json=APPLE | {"adapters": [{"name": "late"}]}).status_code == 200


def test_a_file_of_another_program_is_published_by_loading_it(http: httpx.Client, foreign: Path) -> None:
    file = foreign / "style.safetensors"
    assert load(http, "style", file).text == "Success: LoRA adapter 'style' added successfully."
    reply = http.post("/generate", json=APPLE | {"adapters": [{"name": "style"}]})
    assert reply.headers["x-adapters"].startswith("style@1;")
    again = load(http, "style", file)
    assert (again.status_code, again.json()["error"]["type"]) == (400, "InvalidUserInput")
    assert "has already been loaded. If you want to load the adapter in place" in again.json()["error"]["message"]
    assert load(http, "style", f"file://{file}", load_inplace=True).status_code == 200
    assert http.post("/generate", json=APPLE | {"adapters": [{"name": "style@2"}]}).status_code == 200


def test_what_cannot_be_loaded_has_its_reason(http: httpx.Client, foreign: Path, tmp_path: Path) -> None:
    (foreign / "link").symlink_to(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"secret")
    (foreign / "loop").symlink_to("loop")
    for folder, link in (("weights", "adapter_model.safetensors"), ("config", "adapter_config.json")):
        (foreign / folder).mkdir()
        (foreign / folder / "style.safetensors").write_bytes((foreign / "style.safetensors").read_bytes())
        (foreign / folder / link).symlink_to(tmp_path / "x.safetensors")
    for name, path, status, text in (
        ("nobody", "nobody", 404, "Loading lora nobody failed: No adapter found for nobody"),
        ("gone", foreign / "gone", 404, f"Loading lora gone failed: No adapter found for {foreign}/gone"),
        ("", "ink", 400, "Both 'lora_name' and 'lora_path' must be provided."),
        ("paint", "ink", 400, "lora_path is adapter 'ink'; give that as the lora_name"),
        ("ink", "ink/1", 400, "lora_path is adapter 'ink@1'; give that as the lora_name"),
        ("x", tmp_path / "x.safetensors", 400, "is not below any of"),
        ("x", foreign / ".." / tmp_path.name / "x.safetensors", 400, "is not below any of"),
        ("x", foreign / "link" / "x.safetensors", 400, "is not below any of"),
        ("x", foreign / "weights", 400, "is not below any of"),
        ("x", foreign / "config", 400, "is not below any of"),
        ("x", foreign / "config" / "style.safetensors", 400, "is not below any of"),
        ("x", foreign / "loop", 404, f"Loading lora x failed: No adapter found for {foreign}/loop"),
        ("x", foreign / ("a" * 300), 404, "Loading lora x failed: No adapter found for "),
        ("x", "someone/on-the-hub", 400, "is not below any of"),
        ("broken", foreign / "broken.safetensors", 400, "broken.safetensors"),
        ("x", f"file://{foreign}/style.safetensors#1", 400, f"write it as %23: file://{foreign}/style.safetensors%231"),
        ("x", f"file://{foreign}/style.safetensors?v=1", 400, "write it as %3F"),
        ("x", "file:style.safetensors", 400, "not the URI of a storage"),
        ("x", f"s3:/{foreign}/style.safetensors", 400, "is not below any of"),
        ("x", f"{foreign}/a\0b", 400, "is not below any of"),
        ("style@3", foreign / "style.safetensors", 400, "versions are numbered by storage"),
        ("No!", "ink", 400, "use lower-case letters"),
    ):
        reply = load(http, name, path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, status), reply.text
        assert text in reply.json()["error"]["message"]
    unkeyed = http.post("/v1/load_lora_adapter", json={"lora_name": "ink", "lora_path": "ink"})
    assert (unkeyed.status_code, unkeyed.json()["error"]["type"]) == (401, "AuthenticationError")
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "ink"}).status_code == 401
    assert unload(http, "").json()["error"]["message"] == "'lora_name' needs to be provided to unload a LoRA adapter."
