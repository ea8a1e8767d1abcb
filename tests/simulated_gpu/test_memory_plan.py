"""The memory plan holds on a simulated GPU: between 1.00 and 1.10 times what training allocates."""

import pytest

from benchmarks.memory_plan import USUAL, PlanCase, measure
from longcat.model.flavour import Flavour
from trainer.memory.plan import plan

pytestmark = pytest.mark.simulated_gpu


@pytest.mark.parametrize(
    "case",
    [
        PlanCase(**USUAL),
        PlanCase(**USUAL, dora=True, precision="int8-quanto", every=1),
        PlanCase(**USUAL, precision="int8-torchao", every=2),
        PlanCase(**USUAL, precision="int4-quanto", offload=2, every=1),
        PlanCase(**USUAL, offload=2),
        PlanCase(**USUAL, offload=-1, every=2),
    ],
    ids=str,
)
def test_the_plan_is_at_least_what_training_allocates(flavour: Flavour, case: PlanCase) -> None:
    measured = measure(case, flavour)
    assert measured <= plan(case.workload(flavour)).peak_bytes["training"] <= 1.1 * measured
