"""The scenarios of the suite, run one after the other, and their thresholds.

Limits are multiples of a single client's results on the same machine minutes before, so that they hold on any machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.suite.sample import Measurement, latencies
from loadtest.traffic.figures import median, percentile

CLIENTS = 6
MAX_QUEUE = 12
"""Queue length of the server, small enough for a short flood to fill it."""
_SLACK = 1.5
"""Factor on limits of time, because the machine may have other work."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The users of a phase, and its share of the time."""

    name: str
    about: str
    users: tuple[str, ...]
    """Classes of ``locustfile``."""
    clients: int
    """Number of users of all classes together."""
    share: float
    """Share of the suite's time."""
    load: float = 0.0
    """Rate of an OpenLoopUser, as a share of the closed loop's throughput."""


SCENARIOS = (
    Scenario(name="solo", about="one client: reference for all others", users=("ClosedLoopUser",), clients=1, share=0.15),
    Scenario(
        name="closed", about=f"{CLIENTS} clients, each sending its next request after a reply", users=("ClosedLoopUser",),
        clients=CLIENTS,
        share=0.25,
    ),
    Scenario(
        name="open", about="Poisson arrivals at 60% of the closed loop's throughput", users=("OpenLoopUser",), clients=1,
        share=0.25, load=0.6,
    ),
    Scenario(
        name="rough", about="arrivals at 20%, beside streams, clients that disconnect, and slow connections",
        users=("OpenLoopUser", "StreamingUser", "CancellingUser", "SlowUser"), clients=7, share=0.25, load=0.2,
    ),
    Scenario(
        name="flood",
        about=f"{2 * MAX_QUEUE} clients on a server that takes {MAX_QUEUE} requests", users=("ClosedLoopUser",),
        clients=2 * MAX_QUEUE, share=0.1,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A measurement and its limit."""

    scenario: str
    what: str
    measured: float
    limit: float
    is_least: bool = False
    """True for a lower bound, False for an upper bound."""

    @property
    def holds(self) -> bool:
        """Return True if the measurement is within the limit; False also if there is none."""
        return self.measured >= self.limit if self.is_least else self.measured <= self.limit


def pictures_per_second(samples: Sequence[Measurement]) -> float:
    """Return the throughput from the first request to the last picture."""
    ends = [s.end_seconds for s in samples if s.outcome == "picture"]
    return len(ends) / (max(ends) - min(s.begin_seconds for s in samples)) if ends else 0.0


def judge(samples: Mapping[str, Sequence[Measurement]], at_rest: Mapping[str, float]) -> list[Threshold]:
    """Compare the samples of each scenario, and the server's metrics some seconds later, with the thresholds."""
    alone = latencies(samples["solo"])
    turn = sum(alone) / len(alone) if alone else float("nan")
    judged = []

    def at_most(scenario: str, what: str, measured: float, limit: float) -> None:
        judged.append(Threshold(scenario=scenario, what=what, measured=measured, limit=limit))

    def at_least(scenario: str, what: str, measured: float, limit: float) -> None:
        judged.append(Threshold(scenario=scenario, what=what, measured=measured, limit=limit, is_least=True))

    for name, some in samples.items():
        at_most(name, "requests that failed", sum(s.outcome == "failed" for s in some), 0)
    for name in ("solo", "closed", "open", "rough"):
        at_most(name, "requests refused (429)", sum(s.outcome == "refused" for s in samples[name]), 0)

    p95 = {name: percentile(latencies(some, "ClosedLoopUser", "OpenLoopUser"), 95) for name, some in samples.items()}
    at_most("closed", "p95, s (taking turns, half as much again)", p95["closed"], _SLACK * CLIENTS * turn)
    at_most("open", "p95, s (three times that of one alone, half as much again)", p95["open"], _SLACK * 3 * p95["solo"])
    at_most("rough", "p95 of those who come at random, s (taking turns, likewise)", p95["rough"], _SLACK * 7 * turn)
    watched = [s for s in samples["rough"] if s.kind == "StreamingUser" and s.outcome == "picture"]
    firsts = [s.first_event_seconds for s in watched if s.first_event_seconds is not None]
    at_most(
        "rough",
        "median to a stream's first event, s (half of the whole)",
        median(firsts),
        median(latencies(watched)) / 2,
    )
    at_least("rough", "slow clients that got their picture", len(latencies(samples["rough"], "SlowUser")), 1)

    refused = [s.seconds for s in samples["flood"] if s.outcome == "refused"]
    at_least("flood", "requests refused (429)", len(refused), 1)
    at_most("flood", "p95 of a 429, s (a picture)", percentile(refused, 95), turn)
    at_most(
        "flood", "p95 of those taken, s (taking turns, half as much again)", p95["flood"], _SLACK * MAX_QUEUE * turn
    )

    at_least("after", "clients that left, as the server counts them", at_rest["lithograph_cancelled_requests_total"], 1)
    at_most("after", "requests in progress", at_rest["lithograph_requests_in_progress"], 0)
    at_most("after", "rows being drawn", at_rest["lithograph_active_rows"], 0)
    return judged
