"""Arbitrary files of one adapter leave another one listed and loadable."""

from pathlib import Path

from hypothesis import strategies as st

from longcat.errors import LithographError
from longcat.model.loading import Components
from longcat.storage.opening import open_storage
from service.wire.messages import AdapterState
from tests.fuzz.cases import check_error, try_all
from tests.fuzz.values.adapters import small
from tests.fuzz.values.strange import TEXTS, broken
from tests.service.adapters.conftest import Service, put

LATEST, MANIFEST, WEIGHTS = "latest", "1/manifest.json", "1/adapter.safetensors"


def test_no_content_of_one_adapter_hides_another(tmp_path: Path, model: Components) -> None:
    storage = open_storage((tmp_path / "root").as_uri())
    for name in ("ink", "oil"):
        put(storage, model, tmp_path / "work", name, small())
    service = Service(storage, model, tmp_path / "downloads")
    registry = service.registry
    registry.poll()
    digest = registry.resolve("ink").digest
    good = {file: (tmp_path / "root" / "oil" / file).read_bytes() for file in (LATEST, MANIFEST, WEIGHTS)}
    states = set()

    def check(change: tuple[str, bytes]) -> None:
        file, content = change
        path = tmp_path / "root" / "oil" / file
        path.write_bytes(content)
        try:
            registry.poll()
            try:
                registry.load("oil")
                registry.resolve("oil")
            except LithographError as error:
                check_error(error)
            assert registry.reachable
            states.add(service.state("oil")[0])
            registry.unload("ink")  # from memory, too
            registry.load("ink")
            assert registry.resolve("ink").digest == digest
            assert service.state("ink") == (AdapterState.READY, 1, 1)
        finally:
            path.write_bytes(good[file])

    changes = st.one_of(
        st.tuples(st.just(file), st.one_of(broken(st.just(content)), texts, st.binary(max_size=100)))
        for file, content in good.items()
        for texts in [TEXTS.map(lambda text: text.encode("utf-8", "replace"))]
    )
    try_all("contents of one adapter", check, changes, cases=60)
    assert {AdapterState.READY, AdapterState.OUTDATED} <= states
