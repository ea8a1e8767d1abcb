"""The studio behind a test client."""

from fastapi import FastAPI
from starlette.testclient import TestClient

from studio.context import StudioContext


def studio_of(visitor: TestClient) -> StudioContext:
    """Return what the pages of a studio share."""
    assert isinstance(visitor.app, FastAPI)
    context = visitor.app.state.studio
    assert isinstance(context, StudioContext)
    return context
