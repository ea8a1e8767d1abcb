"""The reports of several engines on the same adapters, as one."""

from collections.abc import Sequence

from service.access.caller import Caller
from service.wire.messages import AdapterReport, AdapterStatus


def merged(reports: Sequence[AdapterReport]) -> AdapterReport:
    """Return the report on all engines, of at least one."""
    statuses: dict[str, list[AdapterStatus]] = {}
    for report in reports:
        for status in report.adapters:
            statuses.setdefault(status.name, []).append(status)
    reachable = [report.reachable for report in reports]
    return AdapterReport(
        storage=reports[0].storage,
        reachable=False if False in reachable else None if None in reachable else True,
        slots=sum(report.slots for report in reports),
        slots_used=tuple(slot for report in reports for slot in report.slots_used),
        adapters=tuple(_merged_status(statuses[name]) for name in sorted(statuses)),
    )


def visible_to(caller: Caller, report: AdapterReport) -> AdapterReport:
    """Return a report on the adapters that a caller may use."""
    if caller.adapters is None:
        return report
    return report.model_copy(
        update={
            "slots_used": tuple(slot for slot in report.slots_used if caller.sees(slot.adapter)),
            "adapters": tuple(status for status in report.adapters if caller.sees(status.name)),
        }
    )


def _merged_status(statuses: Sequence[AdapterStatus]) -> AdapterStatus:
    """Return the state of a name: that of the engine with the oldest version, so that a new one is there on all engines."""
    oldest = min(statuses, key=lambda status: status.version or 0)
    used = [s.last_used_seconds_ago for s in statuses if s.last_used_seconds_ago is not None]
    return oldest.model_copy(
        update={
            "verified": any(status.verified for status in statuses if status.version == oldest.version),
            "pinned": all(status.pinned for status in statuses),
            "last_used_seconds_ago": min(used, default=None),
            "requests": sum(status.requests for status in statuses),
        }
    )
