"""Qualities below exact in the engine: fewer rows for the request, and the same pictures beside any others."""

from typing import Any

from longcat.model.loading import Components
from tests.service.engine.harness import EngineHarness

STEPS = 12


def run(model: Components, *requests: tuple[str, tuple[str, ...], dict[str, Any]]) -> EngineHarness:
    harness = EngineHarness(model, adapter_slots=4, max_rows=8)
    for name, adapters, fields in requests:
        harness.submit(name, *adapters, steps=STEPS, **fields)
    harness.run(len(requests))
    return harness


def test_reused_rows_are_counted_and_pictures_are_those_of_requests_alone(model: Components) -> None:
    requests: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
        ("exact", ("a1",), {"seed": 3}),
        ("balanced", ("a1", "a2"), {"seed": 4, "quality": "balanced", "reuse_tolerance": 0.1}),
        ("fast", (), {"seed": 5, "quality": "fast", "reuse_tolerance": 0.3, "guidance_scale": 1.0}),
    ]
    together = run(model, *requests)
    alone = {request[0]: run(model, request) for request in requests}
    for name, harness in alone.items():
        assert together.pictures(name) == harness.pictures(name)
    assert alone["exact"].engine.row_counts == (2 * STEPS, 0)
    for name, rows in (("balanced", 2 * STEPS), ("fast", STEPS)):
        computed, reused = alone[name].engine.row_counts
        assert computed + reused == rows
        assert reused > 0
    counts = [harness.engine.row_counts for harness in alone.values()]
    assert together.engine.row_counts == tuple(map(sum, zip(*counts, strict=True)))
