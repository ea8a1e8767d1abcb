"""Run records parsed from a training's log of JSON lines, for a ``run.json`` that is out of reach. No torch."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from studio.jobs.record import JobRecord
from trainer.record.run_file import MetricsLine, RunRecord

_FIGURES = (
    "step", "loss", "smoothed_loss", "learning_rate", "gradient_norm", "step_seconds", "images_per_second", "eta_seconds",
)  # fmt: skip


def record_of_log(text: str, job: JobRecord) -> RunRecord | None:
    """Return the run as far as its log goes; None before it has begun."""
    fields: dict[str, Any] = {}
    for event, values in events_of(text):
        match event:
            case "started":
                fields = {"run_id": values.get("run_id", job.id), "total_steps": values.get("total_steps", 0)}
            case "phase":
                fields["phase"] = values.get("name")
            case "step":
                fields |= {name: values[name] for name in (*_FIGURES, "total_steps") if name in values}
            case "resumed":
                fields |= {"start_step": values.get("step"), "step": values.get("step")}
            case "published":
                fields["published"] = values.get("adapter")
            case "finished" | "preempted" | "failed":
                fields |= {"state": event, "message": values.get("message"), "exit_code": values.get("exit_code")}
                fields["problems"] = values.get("problems", ())
    now = datetime.now(UTC)
    known = {"run_id": job.id, "total_steps": 0, "pid": 0, "hostname": job.executor, "code_version": "", "config": {}}
    if not fields:
        return None
    try:
        return RunRecord.model_validate({**known, "started": job.queued, "updated": now, **fields})
    except ValidationError:  # another version's log: its text can still be read
        return None


def metrics_of_log(text: str, after_step: int) -> list[MetricsLine]:
    """Return the logged steps after one; the trainer logs a step about every half minute."""
    lines: dict[int, MetricsLine] = {}
    for event, values in events_of(text):
        if event == "step":
            try:
                line = MetricsLine.model_validate({"time": 0, **{k: values[k] for k in _COLUMNS if k in values}})
            except ValidationError:
                continue
            lines = {step: kept for step, kept in lines.items() if step < line.step} | {line.step: line}
    return [line for line in lines.values() if line.step > after_step]


_COLUMNS = tuple(name for name in MetricsLine.model_fields if name != "time")


def events_of(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a log, with their fields; other lines are left out."""
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # cut off, or printed by a library
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield event["event"], event
