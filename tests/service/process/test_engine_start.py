"""The start of an engine process by device."""

import sys

import pytest

from service.process import engine_start
from service.process.engine_start import engine_context


@pytest.mark.parametrize(
    ("device", "gpu_files", "method"),
    [
        ("cpu", ("/dev/null",), "forkserver"),
        ("auto", (), "forkserver"),
        ("auto", ("/nowhere", "/dev/null"), "spawn"),
        ("cuda", (), "spawn"),
        ("cuda:1", (), "spawn"),
        ("mps", (), "spawn"),
    ],
)
def test_an_engine_is_forked_only_where_no_gpu_can_compute(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu_files: tuple[str, ...], method: str
) -> None:
    monkeypatch.setattr(engine_start, "_GPU_FILES", gpu_files)
    expected = method if sys.platform == "linux" else "spawn"
    assert engine_context(device).get_start_method() == expected
