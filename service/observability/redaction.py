"""Errors without what a client wrote: no log has a prompt, not even a refused one or one in a field that does not exist."""

from dataclasses import replace

from longcat.errors import LithographError, UserError
from longcat.problem import Problem
from longcat.validation import CODES, UNKNOWN_FIELD_CODES

_HIDDEN = "…"
_OWN_DETAILS = CODES | {"body_not_json", "body_in_other_encoding", "malformed_request", "request_too_slow"}
"""Codes of problems whose details are no part of a request."""


def without_text(error: LithographError) -> str:
    """Return an error's message without text from the request: values but numbers, names of unknown fields, details.

    Errors that are not the client's are kept.
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
