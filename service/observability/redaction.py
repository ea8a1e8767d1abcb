"""Redaction of errors: no log contains a prompt, not even a rejected one or one in an unknown field."""

from dataclasses import replace

from longcat.errors import LithographError, UserError
from longcat.problem import Problem
from longcat.validation import CODES, UNKNOWN_FIELD_CODES

_HIDDEN = "…"
_OWN_DETAILS = CODES | {"body_not_json", "body_in_other_encoding", "malformed_request", "request_too_slow"}
"""Codes of problems whose details contain nothing from the request."""


def without_text(error: LithographError) -> str:
    """Return an error's message without text from the request: no values except numbers, no unknown names, no details.

    Errors that are not about the request stay as they are.
    """
    if not isinstance(error, UserError):
        return str(error)
    return ". ".join(str(_without_text(problem)) for problem in error.problems)


def _without_text(problem: Problem) -> Problem:
    is_field_known = problem.code not in UNKNOWN_FIELD_CODES
    are_details_ours = problem.code in _OWN_DETAILS
    return replace(
        problem,
        field=problem.field if is_field_known else _HIDDEN,
        value=problem.value if isinstance(problem.value, bool | int | float | None) else _HIDDEN,
        details={
            name: _HIDDEN if isinstance(detail, str) and not are_details_ours else detail
            for name, detail in problem.details.items()
        },
    )
