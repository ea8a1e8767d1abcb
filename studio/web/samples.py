"""Samples of trainings and adapters in the viewer: one of them, and the ones that it can be compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from studio.web.pages import render


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """One picture of a prompt."""

    key: str
    """Unique among the pictures of its prompt."""
    url: str
    """The address of its viewer."""
    src: str
    """The address of the picture."""
    prompt: str
    label: str
    """The checkpoint or the version that generated it, in the reader's language."""


def render_sample(
    request: Request, sample: ShownSample, others: Sequence[ShownSample], *, below: str | None
) -> Response:
    """Return the viewer of a sample, laid over the one with the key ``below``: the first of the others by default."""
    chosen = next((other for other in others if other.key == below), None)
    if below is None and others:
        chosen = others[0]
    return render(request, "viewer/sample.html", sample=sample, others=others, below=chosen)
