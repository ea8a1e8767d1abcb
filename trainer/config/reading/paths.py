"""Paths in configurations: ``~`` is the home directory. No torch."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from longcat.problem import Problem
from longcat.validation import ProblemValueError

_UNEXPANDED = re.compile(r"~|\$\{?[A-Za-z_]|%[A-Za-z_]\w*%")
"""The start of a path with a variable or with the home of a user who does not exist."""


def _expanded(given: object) -> object:
    """Return a path with ``~`` replaced by the home directory.

    Raises ``ProblemValueError`` for what only a shell replaces, which would name a directory ``$HOME`` or ``~nobody``. The
    environment is not read: an error or a log line would show a secret of it.
    """
    if not isinstance(given, str):
        return given
    path = os.path.expanduser(given)
    if _UNEXPANDED.match(path):
        raise ProblemValueError(
            Problem(
                code="path_not_expanded", template="variables and other users' homes are not replaced here",
                remedy_template="write the path out, or start it with ~/; ./ before it takes it as it stands",
            )
        )  # fmt: skip
    return path


PathText = Annotated[str, BeforeValidator(_expanded)]
"""A path, or something else where no path is given: an ``s3://`` URI, a hub id."""
FilePath = Annotated[Path, BeforeValidator(_expanded)]
