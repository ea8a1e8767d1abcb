"""A training's log in words: its events, from which a page makes sentences in the reader's language. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from longcat.problem import Problem
from studio.jobs.log_record import events_of

_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "started": (),
    "resumed": ("step",),
    "dataset": ("pictures", "dropped"),
    "cached": ("done", "total"),
    "step": ("step", "total_steps", "smoothed_loss"),
    "denoising": ("done", "total"),
    "checkpoint": ("step",),
    "evaluation": ("step",),
    "validation": ("step", "images"),
    "finished": ("step",),
    "preempted": ("step",),
    "failed": ("step",),
}
"""Events that are shown, with the numbers of their sentences; ``phase``, ``published`` and ``warning`` have texts."""
_TEXTS: Mapping[str, str] = {"phase": "name", "published": "adapter", "cached": "kind"}


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One event."""

    key: str
    """Name of its sentence in the catalogue, without ``jobs.log_``."""
    time: datetime | None
    values: Mapping[str, str]
    problems: tuple[Problem, ...]
    """The reasons of a failure, or a warning."""


def log_entries(text: str) -> list[LogEntry]:
    """Return the events of a log of JSON lines, the oldest first; of repeated progress, the last."""
    entries: list[LogEntry] = []
    for entry in _entries(text):
        if entries and entry.key in ("step", "cached", "denoising") and _kind(entries[-1]) == _kind(entry):
            entries.pop()
        entries.append(entry)
    return entries


def _entries(text: str) -> Iterator[LogEntry]:
    for event, fields in events_of(text):
        values = {name: _shown(fields[name]) for name in _NUMBERS.get(event, ()) if name in fields}
        if len(values) < len(_NUMBERS.get(event, ())):
            continue  # of another version
        if name := _TEXTS.get(event):
            values[name] = str(fields.get(name, ""))
        if event not in (*_NUMBERS, *_TEXTS, "warning"):
            continue
        key = "validation_failed" if event == "validation" and fields.get("passed") is False else event
        yield LogEntry(key=key, time=_time(fields.get("time")), values=values, problems=tuple(_problems(fields)))


def _problems(fields: Mapping[str, Any]) -> Iterator[Problem]:
    for fields_of_one in fields.get("problems") or ():
        try:
            yield Problem.from_json(fields_of_one)
        except (TypeError, KeyError, AttributeError):  # of another version: the raw log has it
            continue


def _kind(entry: LogEntry) -> tuple[str, str | None]:
    return entry.key, entry.values.get("kind")


def _shown(number: object) -> str:
    return f"{number:.4g}" if isinstance(number, float) else str(number)


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None
