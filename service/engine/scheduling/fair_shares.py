"""Fair queueing: flows get work in proportion to their shares."""

from collections.abc import Hashable

_MOST_FLOWS = 1024
"""Flows whose finish tags are kept before those without effect are dropped."""


class FairShares:
    """The virtual time of start-time fair queueing.

    The flow with the least start tag gets the next piece of work. Its start tag is the finish tag of its previous piece, or
    the virtual time if that is later, so that an idle flow saves nothing up; its finish tag is the start tag plus the
    piece's cost divided by the flow's share. Virtual time is the start tag of the last piece.

    While two flows wait, flow j gets at most ``share_j * cost_k / share_k`` plus one piece between two pieces of flow k, the
    first of which costs ``cost_k``. Sources: Goyal, Vin and Cheng, Start-time Fair Queuing, SIGCOMM 1996; with several
    pieces under way at once: Jin, Chase and Kaur, Interposed Proportional Sharing, SIGMETRICS 2004, SFQ(D).
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._finish: dict[Hashable, float] = {}

    def start(self, flow: Hashable) -> float:
        """Return the start tag of a flow's next piece."""
        return max(self._now, self._finish.get(flow, 0.0))

    def charge(self, flow: Hashable, cost: float, *, share: float) -> None:
        """Give a flow its next piece of work."""
        self._now = start = self.start(flow)
        self._finish[flow] = start + cost / share
        if len(self._finish) > _MOST_FLOWS:
            self._finish = {flow: tag for flow, tag in self._finish.items() if tag > start}
