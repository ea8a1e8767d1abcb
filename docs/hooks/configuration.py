"""Tables of every option, from the models that read them: names, types, defaults, and why they are there."""

import ast
import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from service.commands import serve
from service.config import AdapterConfig, JobConfig, ModelConfig, ServiceConfig
from trainer.config import TrainConfig
from trainer.dataset_config import DatasetConfig

Row = tuple[str, str, str, str]
"""Name, type, default, and what its docstring says."""


_MODELS = (TrainConfig, DatasetConfig, ServiceConfig, ModelConfig, AdapterConfig, JobConfig)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables where pages ask for them: a line that is ``{{ TrainConfig }}``, or ``{{ serve }}``."""
    tables: dict[str, Callable[[], str]] = {kind.__name__: functools.partial(table_of, kind) for kind in _MODELS}
    tables["serve"] = options_table
    for name, make in tables.items():
        if (place := f"{{{{ {name} }}}}") in markdown:
            markdown = markdown.replace(place, make())
    return markdown


def table_of(kind: type[Any]) -> str:
    """Every field of one of the models."""
    return table(of_pydantic(kind) if issubclass(kind, BaseModel) else of_dataclass(kind))


def of_pydantic(model: type[BaseModel]) -> Iterator[Row]:
    """Fields whose docstrings pydantic keeps. Raises ``ValueError`` at one without."""
    for name, field in model.model_fields.items():
        if not field.description:
            raise ValueError(f"{model.__name__}.{name} has no docstring")
        others = [str(other) for other in getattr(field.validation_alias, "choices", ()) if other != name]
        also = f" Also `{'`, `'.join(others)}`." if others else ""
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else code(default)
        limits = "".join(
            f", {sign} {getattr(limit, key):g}"
            for limit in field.metadata
            for key, sign in {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}.items()
            if getattr(limit, key, None) is not None
        )
        yield name, shown_type(field.annotation) + limits, shown, " ".join(field.description.split()) + also


def of_dataclass(kind: type[Any]) -> Iterator[Row]:
    """Fields, with the strings that stand below them. Raises ``ValueError`` at one without."""
    docstrings = field_docstrings(kind)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if any(map(dataclasses.is_dataclass, (hints[field.name], *typing.get_args(hints[field.name])))):
            continue  # a table of its own
        if field.name not in docstrings:
            raise ValueError(f"{kind.__name__}.{field.name} has no docstring")
        default = field.default
        shown = "required" if default is dataclasses.MISSING else code(default)
        yield field.name, shown_type(hints[field.name]), shown, docstrings[field.name]


def field_docstrings(kind: type[Any]) -> dict[str, str]:
    """Python forgets the strings below fields: they are read from the source."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[field.target.id] = " ".join(text.split())
    return found


def options_table() -> str:
    """Of ``lithograph serve``, as its help has them."""
    rows = []
    for option in serve.params:
        default = option.default
        is_unset = default is None or default == () or type(default).__name__ == "Sentinel"
        shown = "" if is_unset else code(default)
        help_text = str(getattr(option, "help", "")).replace("[default: ", "By default ").removesuffix("]")
        choices = getattr(option.type, "choices", ())
        kind = ", ".join(map(code, choices)) if choices else option.type.name
        rows.append((option.opts[-1], kind, shown, help_text))
    return table(rows, name="option")


def table(rows: Iterable[Row], name: str = "name") -> str:
    """As Markdown; names have anchors, so that they can be linked to."""
    lines = [f"| {name} | type | default | |", "|---|---|---|---|"]
    lines += [f"| {cell(code(row[0]))} | {cell(row[1])} | {cell(row[2])} | {cell(row[3])} |" for row in rows]
    return "\n".join(lines)


def cell(text: str) -> str:
    """What may stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def code(value: object) -> str:
    """As one writes it in JSON; names as they are."""
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if str(value) else '`""`'


def shown_type(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return shown_type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(code(value) for value in arguments)
    if origin in (tuple, list):
        return f"list of {' or '.join(shown_type(a) for a in arguments if a is not Ellipsis)}"
    if arguments:
        return " or ".join(shown_type(a) for a in arguments if a is not type(None))
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}
    name: str = annotation.__name__
    return names.get(name, name)
