"""LitServe's members that are not public: each one in use is listed, and exists in the installed version."""

import ast
import inspect

import litserve
import pytest
from litserve.loops.base import LitLoop
from litserve.transport.base import MessageTransport

from service.process import server
from service.process.litserve_members import OVERRIDDEN, READ
from tests import ROOT

SOURCE = inspect.getsource(litserve.LitServer)
SERVER = next(
    node
    for node in ast.walk(ast.parse(inspect.getsource(server)))
    if isinstance(node, ast.ClassDef) and node.name == "Server"
)
OURS = {node.name for node in SERVER.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)} | {
    node.attr
    for node in ast.walk(SERVER)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_exists(name: str) -> None:
    ours = inspect.signature(getattr(server.Server, name)).parameters.values()
    theirs = inspect.signature(getattr(litserve.LitServer, name)).parameters.values()
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in ours)
    assert takes_any or [p.name for p in positional] == [p.name for p in theirs]


@pytest.mark.parametrize("name", READ)
def test_an_attribute_exists(name: str) -> None:
    assert hasattr(litserve.LitServer, name) or f"self.{name}" in SOURCE


def test_every_member_in_use_is_listed() -> None:
    overridden = {name for name in OURS if name in vars(litserve.LitServer) and not name.startswith("__")}
    assert overridden == OVERRIDDEN.keys()
    used = {
        node.attr
        for node in ast.walk(SERVER)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    theirs = {
        name
        for name in used
        if f"self.{name} " in SOURCE or f"self.{name}:" in SOURCE or name in vars(litserve.LitServer)
    }
    assert theirs - OVERRIDDEN.keys() - {"app", "run"} == READ.keys()


def test_the_engine_loop_and_the_transport_take_what_is_given() -> None:
    parameters = list(inspect.signature(LitLoop.put_response).parameters)
    assert parameters == ["self", "transport", "response_queue_id", "uid", "response_data", "status", "response_type"]
    assert list(inspect.signature(MessageTransport.send).parameters) == ["self", "item", "consumer_id"]


def test_litserve_is_pinned() -> None:
    assert f'"litserve=={litserve.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
