"""Steps and guidance that an adapter declares, in requests that leave them out."""

from typing import Any

import pytest

from longcat.adapter.manifest import Sampling
from longcat.adapter.modules import lora_targets
from longcat.errors import UserError
from longcat.model.loading import Components
from service.engine.sampling_defaults import with_defaults_of
from service.wire.events import ErrorEvent, ResultEvent, StepEvent
from service.wire.messages import GenerateCommand
from service.wire.schema import GenerateRequest, ResolvedRequest
from tests.longcat.sampling.test_slots import random_lora
from tests.service.engine.harness import EngineHarness, as_adapter

BOTH = ("steps", "guidance_scale")


def command(**fields: Any) -> GenerateCommand:
    request = ResolvedRequest(
        prompt="a cat", negative_prompt="", width=64, height=64, steps=16, guidance_scale=4.5, seed=1, num_images=1,
        cfg_renorm=True, rewrite_prompt=False, output_format="png",
    )  # fmt: skip
    return GenerateCommand(id="a", request_id="a", request=request, submitted_at=0.0, deadline=1.0, **fields)


@pytest.mark.parametrize(
    ("declared", "defaulted", "max_steps", "expected"),
    [
        ([(4, 1.0)], BOTH, 100, (4, 1.0)),
        ([(4, 1.0)], ("steps",), 100, (4, 4.5)),
        ([(4, 1.0)], ("guidance_scale",), 100, (16, 1.0)),
        ([(4, 1.0)], (), 100, (16, 4.5)),
        ([None, (4, 1.0), None], BOTH, 100, (4, 1.0)),
        ([None], BOTH, 100, (16, 4.5)),
        ([(4, 1.0), (4, 1.0)], BOTH, 100, (4, 1.0)),
        ([(4, 1.0), (8, 1.0)], ("guidance_scale",), 100, (16, 1.0)),
        ([(50, 1.0)], BOTH, 20, (20, 1.0)),
    ],
)
def test_fields_that_are_left_out_are_those_of_the_adapters(
    model: Components,
    declared: list[tuple[int, float] | None],
    defaulted: tuple[str, ...],
    max_steps: int,
    expected: tuple[int, float],
) -> None:
    weights = random_lora(lora_targets(model.transformer), seed=1)
    samplings = [given and Sampling(steps=given[0], guidance_scale=given[1]) for given in declared]
    manifests = [as_adapter(f"a{i}", weights, model, sampling).manifest for i, sampling in enumerate(samplings)]
    request = with_defaults_of(manifests, command(defaulted=defaulted, max_steps=max_steps))
    assert (request.steps, request.guidance_scale) == expected


def test_adapters_that_differ_are_a_problem_of_the_field(model: Components) -> None:
    weights = random_lora(lora_targets(model.transformer), seed=1)
    manifests = [
        as_adapter(name, weights, model, Sampling(steps=steps, guidance_scale=1.0)).manifest
        for name, steps in (("turbo", 4), ("quick", 8))
    ]
    with pytest.raises(UserError, match=r"steps: is left out, and the adapters turbo \(4\), quick \(8\)") as caught:
        with_defaults_of(manifests, command(defaulted=BOTH))
    assert caught.value.problems[0].remedy == "give steps in the request"


def outcomes(model: Components, *requests: tuple[str, tuple[str, ...], dict[str, Any]]) -> dict[str, ResultEvent]:
    harness = EngineHarness(model, adapter_slots=4, max_rows=8)
    for name, adapters, fields in requests:
        harness.submit(name, *adapters, **fields)
    harness.run(len(requests))
    results = {name: event for name, event in harness.events if isinstance(event, ResultEvent)}
    assert results.keys() == {name for name, _, _ in requests}, harness.events
    for name, result in results.items():
        made = [event for owner, event in harness.events if owner == name and isinstance(event, StepEvent)]
        assert {event.steps for event in made} == {result.request.steps}
    return results


def test_a_turbo_row_shares_the_batch_on_its_own_schedule(model: Components) -> None:
    turbo: dict[str, Any] = {"defaulted": BOTH, "seed": 3}
    ordinary: dict[str, Any] = {"seed": 4}
    mixed = outcomes(
        model,
        ("t", ("turbo",), turbo),
        ("o", (), ordinary),
        ("s", ("turbo", "a1"), turbo),
        ("e", ("turbo",), {"seed": 3}),
    )
    assert (mixed["t"].request.steps, mixed["t"].request.guidance_scale) == (2, 1.0)
    assert (mixed["s"].request.steps, mixed["o"].request.steps, mixed["e"].request.steps) == (2, 4, 4)
    alone = outcomes(model, ("t", ("turbo",), {"steps": 2, "guidance_scale": 1.0, "seed": 3}))
    assert alone["t"].images[0].content == mixed["t"].images[0].content
    assert outcomes(model, ("s", ("turbo", "a1"), turbo))["s"].images == mixed["s"].images
    assert outcomes(model, ("o", (), ordinary))["o"].images == mixed["o"].images


def test_two_turbo_adapters_that_differ_fail_alone(model: Components) -> None:
    harness = EngineHarness(model, adapter_slots=4)
    weights = random_lora(lora_targets(model.transformer), seed=8)
    harness.adapters._there["quick"] = as_adapter("quick", weights, model, Sampling(steps=3, guidance_scale=1.0))
    harness.submit("both", "turbo", "quick", defaulted=BOTH)
    harness.submit("other")
    harness.run(2)
    assert isinstance(harness.outcomes["other"], ResultEvent)
    failed = harness.outcomes["both"]
    assert isinstance(failed, ErrorEvent)
    assert failed.error.problems[0].field == "steps"


def test_an_adapter_may_be_a_bare_name() -> None:
    body = GenerateRequest.model_validate({"prompt": "a cat", "adapters": ["turbo", {"name": "ink", "scale": 0.5}]})
    assert [(choice.name, choice.scale) for choice in body.adapters] == [("turbo", 1.0), ("ink", 0.5)]
    assert body.defaulted == BOTH
