"""The sender of a request, as its API key describes it."""

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from longcat.adapter.reference import parse_reference
from longcat.errors import AdapterError, UserError
from service.access.allowance import UNLIMITED, Allowance
from service.wire.schema import Priority, rank_of


class Role(StrEnum):
    """A group of requests that a key allows."""

    GENERATE = "generate"
    """Generate pictures, follow its own jobs, and list the adapters that it may use."""
    ADAPTERS = "adapters"
    """Load, pin, publish and remove the adapters that it may use."""
    ADMIN = "admin"
    """Everything, with the jobs of all keys and the metrics."""


class ForbiddenError(UserError):
    """The server does not allow the request, to this key or to anybody."""

    code = "forbidden"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """The sender of a request."""

    name: str | None
    """Name of the key; None on a server without keys, where all callers are one."""
    roles: frozenset[Role]
    adapters: tuple[str, ...] | None = None
    """Patterns of the adapters that it may use, with ``*`` for any characters; None allows all."""
    allowance: Allowance = UNLIMITED

    def has(self, role: Role) -> bool:
        """Return whether the caller has a role; an administrator has all."""
        return bool(self.roles & {role, Role.ADMIN})

    def check(self, role: Role) -> None:
        """Raise ``ForbiddenError`` unless the caller has a role."""
        if not self.has(role):
            raise ForbiddenError(
                "key_lacks_role",
                "the API key {key} does not have the role {role}",
                remedy="send a key that has it, or add it with: lithograph keys add NAME --role {role}",
                key=self.name,
                role=str(role),
            )

    def priority_of(self, asked: Priority | None) -> Priority:
        """Return the priority of a request that asks for one, or for none. Raises ``ForbiddenError`` above its highest."""
        allowance = self.allowance
        if asked is not None and rank_of(asked) > rank_of(allowance.priority):
            raise ForbiddenError(
                "key_lacks_priority",
                "the API key {key} does not allow this priority",
                remedy="give at most {highest}, or leave it out",
                field="priority",
                value=asked,
                key=self.name,
                highest=allowance.priority,
            )
        return asked or allowance.default_priority

    def sees(self, adapter: str) -> bool:
        """Return whether the caller may know of an adapter; ``adapter``: its name, with or without a version."""
        name = adapter.partition("@")[0]
        return self.adapters is None or any(fnmatchcase(name, pattern) for pattern in self.adapters)

    def check_adapter(self, adapter: str, *, field: str) -> None:
        """Raise ``ForbiddenError`` about ``field`` for an adapter that the caller may not use, whether or not it exists.

        Raises ``AdapterError`` for a name that no adapter can have.
        """
        try:
            name = parse_reference(adapter, field=field).name
        except AdapterError:
            if self.adapters is None:
                return  # the name is reported with the other problems of the request
            raise
        if not self.sees(name):
            raise ForbiddenError(
                "key_lacks_adapter",
                "the API key {key} does not allow this adapter",
                remedy="use adapters whose names match {patterns}",
                field=field,
                value=adapter,
                key=self.name,
                patterns=", ".join(self.adapters or ()),
            )


ANYONE = Caller(name=None, roles=frozenset(Role))
"""Every caller of a server without keys."""
