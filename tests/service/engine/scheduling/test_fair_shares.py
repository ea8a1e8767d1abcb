"""Fair queueing: no flow gets more than its share and one piece between two pieces of another one."""

import random

import pytest

from service.engine.scheduling.fair_shares import FairShares

SHARES = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 4.0}


@pytest.mark.parametrize("seed", range(5))
def test_flows_that_wait_get_work_in_proportion_to_their_shares(seed: int) -> None:
    """Any costs: the bound of the class's docstring, between each two pieces of each flow."""
    costs, fair = random.Random(seed), FairShares()
    work = dict.fromkeys(SHARES, 0.0)
    last: dict[str, tuple[float, dict[str, float]]] = {}
    for _ in range(2000):
        flow = min(SHARES, key=fair.start)
        cost = costs.choice((1.0, 3.0, 50.0))
        if flow in last:
            before, then = last[flow]
            for other in SHARES.keys() - {flow}:
                assert work[other] - then[other] <= before * SHARES[other] / SHARES[flow] + 50
        last[flow] = (cost, dict(work))
        fair.charge(flow, cost, share=SHARES[flow])
        work[flow] += cost
    relative = [work[flow] / share for flow, share in SHARES.items()]
    assert max(relative) - min(relative) <= 50 / min(SHARES.values()) * 2


def test_an_idle_flow_saves_nothing_up_and_owes_nothing() -> None:
    fair = FairShares()
    for _ in range(100):
        fair.charge("busy", 1.0, share=1.0)
    fair.charge("late", 1.0, share=1.0)
    assert fair.start("late") - fair.start("busy") <= 1.0
    assert fair.start("late") >= fair.start("busy")  # not a hundred pieces to catch up on


def test_flows_without_effect_are_dropped() -> None:
    fair = FairShares()
    for number in range(5000):
        fair.charge(number, 1.0, share=1.0)
        fair.charge("all", 1.0, share=1.0)
    assert len(fair._finish) < 2000
    assert fair.start(0) == fair._now
