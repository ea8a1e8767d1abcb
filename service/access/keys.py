"""The file of API keys: names, hashes, roles and adapters. It holds no key, so that reading it lets nobody in.

A key has 256 random bits. Its SHA-256 is therefore enough: a hash that is slow to compute protects secrets that can be
guessed (NIST SP 800-63B, section 5.1.2, asks for one below 112 bits).
"""

import hashlib
import hmac
import json
import re
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from longcat.errors import ConfigError
from longcat.problem import Problem, reason_of
from longcat.storage.regular import open_regular
from longcat.validation import ProblemValueError, problems_of
from service.access.allowance import Allowance
from service.access.caller import Caller, Role
from service.wire.schema import NORMAL, Priority

KEY_PREFIX = "litho-"
"""Begins every key, so that scanners of repositories and logs can find one that has leaked."""
_KEY_BYTES = 32
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PATTERN = re.compile(r"[a-z0-9.*_-]{1,64}")
ALLOWANCE_FIELDS = tuple(field.name for field in fields(Allowance))
"""The fields of a key that are about its allowance."""
LARGEST_BYTES = 4 * 2**20
"""Largest file: more than ten thousand keys."""


def hash_of(key: str) -> str:
    """Return the hash of a key, as hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """Return a new random key."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def _check_name(given: str) -> str:
    if not _NAME.fullmatch(given):
        raise ProblemValueError(
            Problem(
                code="key_name_invalid",
                template="not the name of a key",
                remedy_template="use lower-case letters, digits, '.', '_' and '-', at most 63",
            )
        )
    return given


def _check_pattern(given: str) -> str:
    if not _PATTERN.fullmatch(given):
        raise ProblemValueError(
            Problem(
                code="adapter_pattern_invalid",
                template="not a pattern of adapter names",
                remedy_template="use lower-case letters, digits, '.', '_', '-' and *, as in {example}",
                details={"example": "team-a-*"},
            )
        )
    return given


class ApiKey(BaseModel):
    """One key, without the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_check_name)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the key."""
    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = (Role.GENERATE,)
    adapters: tuple[Annotated[str, AfterValidator(_check_pattern)], ...] | None = None
    """Patterns of the adapters that it may use and see; None allows all, an empty list none."""
    created: datetime | None = None
    share: Annotated[float, Field(ge=0.01, le=1000)] = 1.0
    """Part of the device while other keys wait, relative to their shares."""
    priority: Priority = NORMAL
    """The highest priority that its requests may have."""
    requests: Annotated[int | None, Field(ge=1)] = None
    """Most requests under way at a time; None: no limit."""
    pixel_steps_per_minute: Annotated[int | None, Field(ge=1)] = None
    """Most pixel-steps a minute: width x height x steps of a picture, twice with guidance; None: no limit."""

    @property
    def caller(self) -> Caller:
        """Return the sender of requests with this key."""
        allowance = Allowance(**{name: getattr(self, name) for name in ALLOWANCE_FIELDS})
        return Caller(name=self.name, roles=frozenset(self.roles), adapters=self.adapters, allowance=allowance)

    def matches(self, digest: str) -> bool:
        """Return whether a hash is that of this key, in a time that does not depend on it."""
        return hmac.compare_digest(self.sha256, digest)


class ApiKeys(BaseModel):
    """All keys of a server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        counts = Counter(self.names)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise ProblemValueError(
                Problem(
                    code="key_name_twice",
                    template="two keys have the name {name}",
                    remedy_template="rename or remove one of them",
                    field="keys",
                    details={"name": twice},
                )
            )
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises ``ConfigError`` about the file; no message holds a hash."""
        try:
            with open_regular(path) as file:
                content = file.read(LARGEST_BYTES + 1)
        except OSError as error:
            raise _unreadable(path, reason_of(error)) from error
        if len(content) > LARGEST_BYTES:
            raise _unreadable(path, f"it has more than {LARGEST_BYTES} bytes")
        try:
            parsed = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            raise _unreadable(path, "it is not JSON in UTF-8") from None
        try:
            return cls.model_validate(parsed)
        except ValidationError as error:
            problems = (_without_hash(problem) for problem in problems_of(error, cls))
            raise ConfigError.of(problem.within(field=str(path)) for problem in problems) from None

    def caller_of(self, key: str) -> Caller | None:
        """Return the sender of a request with a key; None for an unknown key. All keys are compared."""
        digest = hash_of(key)
        found = [known for known in self.keys if known.matches(digest)]
        return found[0].caller if found else None

    def with_key(self, key: ApiKey) -> Self:
        """Return these keys and another. Raises ``ConfigError`` if its name is taken."""
        if key.name in self.names:
            raise ConfigError(
                "key_exists",
                "there is a key of that name",
                remedy="give another name, or remove it with: lithograph keys remove {name}",
                field="NAME",
                value=key.name,
                name=key.name,
            )
        return self.model_copy(update={"keys": (*self.keys, key)})

    def without(self, name: str) -> Self:
        """Return these keys without one. Raises ``ConfigError`` if there is none of that name."""
        if name not in self.names:
            raise ConfigError(
                "key_unknown", "there is no key of that name", remedy="list them with: lithograph keys list",
                field="NAME", value=name,
            )  # fmt: skip
        return self.model_copy(update={"keys": tuple(key for key in self.keys if key.name != name)})

    @property
    def names(self) -> list[str]:
        """Return the names of all keys."""
        return [key.name for key in self.keys]

    @property
    def are_limited(self) -> bool:
        """True if a key may see only some adapters."""
        return any(key.adapters is not None for key in self.keys)

    def to_json(self) -> str:
        """Return the content of the file."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2) + "\n"


def make_key(
    name: str, *, roles: Iterable[str], adapters: Iterable[str] | None, **allowance: object
) -> tuple[str, ApiKey]:
    """Return a new key, and its entry in the file; ``allowance``: fields of ``Allowance``. Raises ``ConfigError``."""
    secret = new_key()
    entry = {
        "name": name, "sha256": hash_of(secret), "roles": tuple(roles),
        "adapters": None if adapters is None else tuple(adapters),
        "created": datetime.now(UTC).replace(microsecond=0), **allowance,
    }  # fmt: skip
    try:
        return secret, ApiKey.model_validate(entry)
    except ValidationError as error:
        raise ConfigError.of(problems_of(error, ApiKey)) from error


def _unreadable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        "keys_file_unreadable",
        "is no file of API keys: {reason}",
        remedy="make one with: lithograph keys add NAME --file {path}",
        field="--api-keys-file",
        value=path,
        reason=reason,
        path=str(path),
    )


def _without_hash(problem: Problem) -> Problem:
    """Return a problem without its value: it may be a hash, or a key that was written in its place."""
    return replace(problem, value=None)
