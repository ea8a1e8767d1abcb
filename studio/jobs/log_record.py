"""Run records read from a training's log, where its ``run.json`` cannot be read: a JSON object a line. No torch."""

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
    """The run as far as its log tells; None before it has begun."""
    said: dict[str, Any] = {}
    for event, values in _events(text):
        match event:
            case "started":
                said = {"run_id": values.get("run_id", job.id), "total_steps": values.get("total_steps", 0)}
            case "phase":
                said["phase"] = values.get("name")
            case "step":
                said |= {name: values[name] for name in (*_FIGURES, "total_steps") if name in values}
            case "resumed":
                said |= {"start_step": values.get("step"), "step": values.get("step")}
            case "published":
                said["published"] = values.get("adapter")
            case "finished" | "preempted" | "failed":
                said |= {"state": event, "message": values.get("message"), "exit_code": values.get("exit_code")}
                said["problems"] = values.get("problems", ())
    now = datetime.now(UTC)
    known = {"run_id": job.id, "total_steps": 0, "pid": 0, "hostname": job.place, "code_version": "", "config": {}}
    if not said:
        return None
    try:
        return RunRecord.model_validate({**known, "started": job.queued, "updated": now, **said})
    except ValidationError:  # another version's log: the text is there to read
        return None


def metrics_of_log(text: str, after_step: int) -> list[MetricsLine]:
    """The steps that were logged: one every half minute or so."""
    lines: dict[int, MetricsLine] = {}
    for event, values in _events(text):
        if event == "step":
            try:
                line = MetricsLine.model_validate({"time": 0, **{k: values[k] for k in _COLUMNS if k in values}})
            except ValidationError:
                continue
            lines = {step: kept for step, kept in lines.items() if step < line.step} | {line.step: line}
    return [line for line in lines.values() if line.step > after_step]


_COLUMNS = tuple(name for name in MetricsLine.model_fields if name != "time")


def _events(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in text.splitlines():
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):  # cut short, or of a library
            continue
        if isinstance(said, dict) and isinstance(said.get("event"), str):
            yield said["event"], said
