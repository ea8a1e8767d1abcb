"""Configurations as pydantic models, from which command-line options, environment variables and the reference are derived.

One field is one option: name, type, default, limits and help are written once, at the field. Option ``--adapter-slots`` of
``lithograph serve`` is ``LITHOGRAPH_SERVE_ADAPTER_SLOTS`` in the environment, which click reads: with pydantic-settings,
every program that makes a configuration would read the environment; here only commands do.
"""

import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from longcat.errors import ConfigError
from longcat.problem import Problem
from longcat.validation import ProblemValueError, problems_of

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Model = TypeVar("_Model", bound="Configuration")

LONGEST_SECONDS = 365 * 24 * 3600
"""Longest time that an option can give. The system has dates and time limits of that length, but no infinite ones."""
_SECRET = re.compile(r"[!-~]+")


class Configuration(BaseModel):
    """The base of every configuration: frozen, given by keyword, validated as a whole; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def __init__(self, **fields: Any) -> None:
        """Validate the fields. Raises ``ConfigError`` with one problem for each field that is wrong."""
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError.of(problems_of(error, type(self))) from error


def _existing(folders: tuple[Path, ...]) -> tuple[Path, ...]:
    for folder in folders:
        if not folder.is_dir():
            raise ProblemValueError(
                Problem(
                    code="no_such_directory",
                    template="there is no directory {path}",
                    remedy_template="create it, or give another",
                    details={"path": str(folder)},
                )
            )
    return folders


Directories = Annotated[tuple[Path, ...], AfterValidator(_existing)]
"""The type of a field that names directories, which have to exist."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """The option of a field, where it does not follow from the field: ``Annotated[int, Flag(name="adapter-slots")]``.

    A field whose type is a ``Configuration`` is a group of options; with a ``Flag`` it is one option.
    """

    name: str | None = None
    """Without dashes; None is the field's name."""
    metavar: str | None = None
    """Placeholder of the value in the help; None is the type."""
    envvar: str | None = None
    """An environment variable instead of the command's own."""
    default: str | None = None
    """Meaning of the default None, for the help."""
    is_option: bool = True
    """False for a field that the command fills in itself."""
    is_secret: bool = False
    """True for a text that no process list may show: another option, ``--admin-key-file``, takes a file with it."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field as an option."""

    field: str
    info: FieldInfo
    flag: Flag

    @property
    def name(self) -> str:
        """Return the option as it is typed: ``--adapter-slots``."""
        return f"--{self.flag.name or self.field.replace('_', '-')}"

    @property
    def parameter(self) -> str:
        """Return the command function's parameter, whose upper case ends the environment variable."""
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def file_name(self) -> str:
        """Return the option that takes a secret's file: ``--admin-key-file``."""
        return f"{self.name}-file"

    @property
    def file_parameter(self) -> str:
        """Return the command function's parameter for a secret's file."""
        return f"{self.parameter}_file"

    @property
    def file_help(self) -> str:
        """Return the help of the option that takes a secret's file."""
        return f"File that holds the value of {self.name}, which a command line would show to everyone on this machine."

    @property
    def default(self) -> Any:
        """Return the default as JSON has it; None where there is none."""
        default = self.info.get_default(call_default_factory=True)
        return None if default is PydanticUndefined else default.value if isinstance(default, Enum) else default

    @property
    def help(self) -> str:
        """Return the field's docstring on one line. Raises ``ValueError`` if it has none."""
        if not self.info.description:
            raise ValueError(f"field {self.field} has no docstring")
        text = " ".join(self.info.description.split())
        return f"{text} [default: {self.flag.default}]" if self.flag.default else text


def options_of(model: type[Configuration]) -> Iterator[Option]:
    """Yield the options of a configuration, those of its groups where the group stands."""
    for name, info in model.model_fields.items():
        option = _option(name, info)
        if group := _group(option):
            yield from options_of(group)
        elif option.flag.is_option:
            yield option


def command_options(
    model: type[Configuration], *, only: tuple[str, ...] | None = None
) -> Callable[[_Command], _Command]:
    """Return a decorator that gives a click command the options of a configuration; ``only`` names fields to take."""
    taken = [option for option in options_of(model) if only is None or option.field in only]

    def decorate(command: _Command) -> _Command:
        for option in reversed(taken):
            command = _click_option(option)(command)
            if option.flag.is_secret:
                path = click.Path(path_type=Path)
                command = click.option(
                    option.file_name, option.file_parameter, type=path, metavar="FILE", help=option.file_help
                )(command)
        return command

    return decorate


def configure(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """Return the configuration of a command's parameters (see ``build``); its problems are a usage error, a line each."""
    try:
        return build(model, values)
    except ConfigError as error:
        raise click.UsageError("\n".join(map(str, error.problems))) from error


def build(model: type[_Model], values: Mapping[str, Any]) -> _Model:
    """Return the configuration that a command's parameters describe; those that are missing or None are left to defaults.

    Raises ``ConfigError``, whose fields are options. A group that may be None is None if a required option of it is missing.
    """
    options = [_option(name, info) for name, info in model.model_fields.items()]
    fields: dict[str, Any] = {}
    for option in options:
        if group := _group(option):
            is_left_out = type(None) in get_args(option.info.annotation) and not _is_given(group, values)
            fields[option.field] = None if is_left_out else build(group, values)
        elif (value := _value(option, values)) is not None:
            fields[option.field] = value
    try:
        return model(**fields)
    except ConfigError as error:
        names = {option.field: option.name for option in options if option.flag.is_option}
        raise ConfigError.of(_named(problem, names) for problem in error.problems) from error


def _value(option: Option, values: Mapping[str, Any]) -> Any:
    """Return the value of an option; a secret's may be in a file. Raises ``ConfigError``."""
    value = values.get(option.parameter)
    if not option.flag.is_secret:
        return value
    if (path := values.get(option.file_parameter)) is not None:
        return _checked_secret(_secret_in(path, option, value), option.file_name)
    return None if value is None else _checked_secret(value, option.name)


def _checked_secret(secret: str, name: str) -> str:
    """Return a secret that a header can carry; ``name``: its option. No message shows it. Raises ``ConfigError``."""
    if not _SECRET.fullmatch(secret):
        raise ConfigError(
            "secret_invalid",
            "is empty, or has spaces or characters outside ASCII, which requests cannot send",
            remedy="give a secret of letters, digits and punctuation, or leave the option out",
            field=name,
        )
    return secret


def _secret_in(path: Path, option: Option, value: object) -> str:
    """Return the secret in a file; ``value``: that of the option without a file."""
    if value is not None:
        raise ConfigError(
            "secret_given_twice",
            "{option} is given, too",
            remedy="give one of the two",
            field=option.file_name,
            value=path,
            option=option.name,
        )
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "secret_file_unreadable",
            "cannot be read ({reason})",
            remedy="give a text file that holds the secret alone",
            field=option.file_name,
            value=path,
            reason=error.strerror if isinstance(error, OSError) else "it is not UTF-8",
        ) from None
    if not secret:
        raise ConfigError(
            "secret_file_empty",
            "holds nothing",
            remedy="write the secret into it",
            field=option.file_name,
            value=path,
        )
    return secret


def _is_given(group: type[Configuration], values: Mapping[str, Any]) -> bool:
    """Return whether every required option of a group has a value."""
    required = [_option(name, info) for name, info in group.model_fields.items() if info.is_required()]
    return all(values.get(option.parameter) is not None for option in required)


def _named(problem: Problem, names: Mapping[str, str]) -> Problem:
    """Return the problem of a field as one of its option; an index in a list is dropped, as each value is shown."""
    field, dot, inner = problem.field.partition(".")
    if field not in names:
        return problem
    return replace(problem, field=names[field] + (f"{dot}{inner}" if inner and not inner.isdecimal() else ""))


def _option(name: str, info: FieldInfo) -> Option:
    flag = next((each for each in info.metadata if isinstance(each, Flag)), Flag())
    return Option(field=name, info=info, flag=flag)


def _group(option: Option) -> type[Configuration] | None:
    kind = _without_none(option.info.annotation)
    is_group = isinstance(kind, type) and issubclass(kind, Configuration) and option.flag == Flag()
    return kind if is_group else None


def _click_option(option: Option) -> Callable[[_Command], _Command]:
    kind, default = _without_none(option.info.annotation), option.default
    how: dict[str, Any] = {"help": option.help, "metavar": option.flag.metavar, "envvar": option.flag.envvar}
    if kind is bool:
        how |= {"is_flag": True, "default": default}
    elif get_origin(kind) is tuple:
        how |= {"multiple": True, "type": _click_type(get_args(kind)[0])}
    else:
        how |= {"type": _click_type(kind), "default": default, "show_default": default is not None}
    return click.option(option.name, option.parameter, **how)


def _click_type(kind: Any) -> Any:
    """Return click's type of a field's; ranges and forms are left to pydantic, which names the remedy."""
    if get_origin(kind) is Annotated:
        return _click_type(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return click.Choice([str(choice) for choice in get_args(kind)])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return click.Choice([str(member.value) for member in kind])
    if kind is Path:
        return click.Path(path_type=Path)
    return kind if kind in (int, float) else str


def _without_none(annotation: Any) -> Any:
    """Return ``X`` for ``X | None``, and any other type as it is."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else annotation
