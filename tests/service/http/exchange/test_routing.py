"""The choice of an engine by its work and its adapters."""

from collections.abc import Collection
from dataclasses import dataclass

import pytest

from service.access.cost import pixel_steps_of
from service.http.exchange.routing import route
from service.wire.schema import AdapterChoice, ResolvedRequest
from tests.service.http.exchange.engines import resolved


@dataclass(frozen=True)
class Engine:
    work: float
    adapters: Collection[str] = ()


def chosen(request: ResolvedRequest, *engines: Engine) -> int:
    return engines.index(route(request, engines))


def test_work_is_pixels_times_rows_times_steps() -> None:
    base = pixel_steps_of(resolved(guidance_scale=1.0))
    assert pixel_steps_of(resolved(guidance_scale=4.0)) == 2 * base
    assert pixel_steps_of(resolved(guidance_scale=1.0, steps=resolved().steps * 3, num_images=2)) == 6 * base
    assert pixel_steps_of(resolved(guidance_scale=1.0, width=128)) == 2 * base


def test_a_request_goes_to_the_engine_with_the_least_work() -> None:
    own = pixel_steps_of(resolved())
    assert chosen(resolved(), Engine(3 * own), Engine(2 * own), Engine(2.1 * own)) == 1
    assert chosen(resolved(), Engine(0.0)) == 0
    # Adapters that a request does not name do not matter.
    assert chosen(resolved(), Engine(0.1 * own, {"ink"}), Engine(0.0)) == 1


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ((0.4, 0.0), 0),  # less than half of the request's own
        ((1.0, 0.0), 1),  # an idle engine is not passed over
        ((12.0, 10.0), 0),  # a fifth of the least
        ((13.0, 10.0), 1),
    ],
)
def test_an_adapter_in_a_slot_decides_between_engines_of_about_the_same_work(
    work: tuple[float, float], expected: int
) -> None:
    request = resolved(adapters=(AdapterChoice(name="ink", scale=1.0),))
    own = pixel_steps_of(request)
    assert chosen(request, Engine(work[0] * own, {"ink"}), Engine(work[1] * own, {"oil"})) == expected


def test_the_engine_that_lacks_the_fewest_adapters_is_chosen_then_the_one_with_less_work() -> None:
    request = resolved(adapters=tuple(AdapterChoice(name=name, scale=1.0) for name in ("ink", "oil@2")))
    own = pixel_steps_of(request)
    assert chosen(request, Engine(0.0, {"ink"}), Engine(0.3 * own, {"ink", "oil@2"})) == 1
    assert chosen(request, Engine(0.2 * own, {"ink"}), Engine(0.1 * own, {"oil@2"})) == 1
