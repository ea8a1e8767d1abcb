"""Logging of every process of Lithograph: on stderr, in one of two forms, without known, harmless lines.

A log entry is an event with fields. Programs get a line of JSON::

    {"time": "2026-11-24T23:10:00.123Z", "level": "INFO", "logger": "lithograph", "event": "adapter_served", …}

and people at a terminal a line to read::

    2026-11-24 23:10:00 INFO lithograph: adapter served: adapter ink@2, rank 8, …

A record that is no event (a library's warning, a stack trace) has a ``message`` instead of fields.
"""

import json
import logging
import math
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, get_args

LogFormat = Literal["auto", "json", "text"]
"""The form of log lines; auto is text on a terminal and JSON elsewhere."""
LOG_FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)

_NOISE = {
    # torchao 0.18 beside torch 2.13: kernels for other GPUs, and enums that torch has come to know by itself.
    "torchao": "Failed to load ",
    "torch.utils._pytree": " is an Enum subclass and is now natively supported",
    "torchao.kernel.intmm": "Detected no triton",
    # diffusers looks for torchao classes that 0.18 has moved; quantization here calls torchao directly.
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}
_PLAIN = re.compile(r'[^\s="\x00-\x1f\x7f-\x9f]+')


def set_up_logging(log_format: str = "auto") -> None:
    """Log to stderr from INFO up, libraries from WARNING up. Call it once a process, from its entry point."""
    handler = logging.StreamHandler(sys.stderr)
    is_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(JsonLines() if is_json else logging.Formatter(_TEXT, datefmt="%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("lithograph").setLevel(logging.INFO)


def log_event(log: logging.Logger, event: str, level: int = logging.INFO, /, **fields: Any) -> None:
    """Log an event. Fields are numbers, texts, or lists and mappings of them; those that are None are left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    log.log(level, "%s", _EventText(event, given), extra={"event": event, "fields": given})


def silence_import_noise() -> None:
    """Drop exactly the known lines. Call it before torch and diffusers are imported."""
    for name, text in _NOISE.items():
        logging.getLogger(name).addFilter(partial(_lacks, text))


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {"time": time, "level": record.levelname, "logger": record.name}
        if event := getattr(record, "event", None):
            line |= {"event": event} | {name: _json(value) for name, value in getattr(record, "fields", {}).items()}
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return _written(line)


_UNSEEN = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}
"""Characters that JSON does not escape, although some readers end a line there and some terminals interpret them."""
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _EventText:
    """An event as text for people, formatted only if it is logged."""

    def __init__(self, event: str, fields: Mapping[str, Any]) -> None:
        self._event = event
        self._fields = fields

    def __str__(self) -> str:
        # ``problems`` is for programs that translate: a message beside it has the same in words.
        shown = ((name, value) for name, value in self._fields.items() if name != "problems")
        text = ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in shown)
        return self._event.replace("_", " ") + (text and f": {text}")


def _text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
        case str():
            return value if _PLAIN.fullmatch(value) else _written(value)
        case Mapping():
            return " ".join(f"{name} {_text(one)}" for name, one in value.items())
        case Sequence():
            return " ".join(_text(one) for one in value)
    return _text(str(value))


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str).translate(_UNSEEN)


def _json(value: Any) -> Any:
    """JSON has no number that is not finite."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _lacks(text: str, record: logging.LogRecord) -> bool:
    return text not in record.getMessage()
