"""Tables of every option, made from the models that read them: names, types, defaults and docstrings."""

import functools
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from longcat.options import Configuration, options_of
from service.config import ServiceConfig
from studio.config import StudioConfig
from trainer.config.dataset_options import DatasetConfig
from trainer.config.distillation import DistillationConfig
from trainer.config.options import TrainConfig

Row = tuple[str, str, str, str]
"""Name, type, default and docstring."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace a line such as ``{{ TrainConfig }}`` with the table of that model."""
    tables: Mapping[str, Callable[[], str]] = {
        kind.__name__: functools.partial(fields_table, kind)
        for kind in (TrainConfig, DistillationConfig, DatasetConfig)
    } | {kind.__name__: functools.partial(options_table, kind) for kind in (ServiceConfig, StudioConfig)}
    for name, make in tables.items():
        if (place := f"{{{{ {name} }}}}") in markdown:
            markdown = markdown.replace(place, make())
    return markdown


def fields_table(model: type[BaseModel]) -> str:
    """Return the table of a configuration file's fields."""
    return table(field_rows(model))


def field_rows(model: type[BaseModel]) -> Iterator[Row]:
    """Yield a row for each field. Raises ``ValueError`` at one without a docstring."""
    for name, field in model.model_fields.items():
        if not field.description:
            raise ValueError(f"{model.__name__}.{name} has no docstring")
        others = [str(other) for other in getattr(field.validation_alias, "choices", ()) if other != name]
        also = f" Also `{'`, `'.join(others)}`." if others else ""
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else code(default)
        yield name, shown_type(field.annotation) + limits(field), shown, " ".join(field.description.split()) + also


def options_table(model: type[Configuration]) -> str:
    """Return the table of a command's options."""
    rows = []
    for option in options_of(model):
        default = option.flag.default or ("" if option.default in (None, ()) else code(option.default))
        text = " ".join((option.info.description or "").split())
        if option.flag.is_secret:
            rows.append((option.file_name, "path", "", option.file_help))
        rows.append((option.name, shown_type(option.info.annotation) + limits(option.info), default, text))
    return table(rows, name="option")


def limits(field: FieldInfo) -> str:
    """Return a field's limits, as in ``, ≥ 1``."""
    return "".join(
        f", {sign} {getattr(limit, key):g}"
        for limit in field.metadata
        for key, sign in {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}.items()
        if getattr(limit, key, None) is not None
    )


def table(rows: Iterable[Row], name: str = "name") -> str:
    """Return rows as a Markdown table."""
    lines = [f"| {name} | type | default | |", "|---|---|---|---|"]
    lines += [f"| {cell(code(row[0]))} | {cell(row[1])} | {cell(row[2])} | {cell(row[3])} |" for row in rows]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Escape text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def code(value: object) -> str:
    """Format a value as in JSON; text without its quotes."""
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    if isinstance(value, Enum):
        return code(value.value)
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if str(value) else '`""`'


def shown_type(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shown_type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(code(value) for value in arguments)
    if origin is dict:
        return f"object of {shown_type(arguments[1])}s by {shown_type(arguments[0])}"
    if origin in (tuple, list):
        return f"list of {' or '.join(shown_type(a) for a in arguments if a is not Ellipsis)}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(code(member.value) for member in annotation)
    if arguments:
        return " or ".join(shown_type(a) for a in arguments if a is not type(None))
    names = {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "true or false",
        "Path": "path",
        "ClusterSettings": "file or JSON",
    }
    name: str = annotation.__name__
    return names.get(name, name)
