from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from lithograph.__main__ import cli
from longcat.errors import LithographError
from longcat.storage.interface import Storage
from tests.longcat.adapter.foreign.test_reading import PREFIXED, layers_of

Command = Callable[..., Result]


def run(*arguments: str, answer: str = "", environment: dict[str, str] | None = None) -> Result:
    """Run the command in this process; our own errors are raised, as to ``main``."""
    result = CliRunner().invoke(
        cli, ["adapters", *arguments], input=answer, env=environment, auto_envvar_prefix="LITHOGRAPH"
    )
    if isinstance(result.exception, LithographError):
        raise result.exception
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


@pytest.fixture
def command(storage: Storage, request: pytest.FixtureRequest) -> Command:
    """Return a function that runs a subcommand on the storage; an unexpected failure fails the test."""
    options = ["--storage", storage.uri]
    if storage.uri.startswith("s3:"):
        options += ["--endpoint-url", request.getfixturevalue("s3_endpoint")]

    def on_storage(*arguments: str, answer: str = "") -> Result:
        return run(*arguments, *options, answer=answer)

    return on_storage


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    named = {f"lora_unet_{name.removeprefix('transformer.').replace('.', '_')}": at for name, at in PREFIXED.items()}
    alphas = {f"{name}.alpha": torch.tensor(2.0) for name in named}
    save_file(layers_of(named, down="lora_down", up="lora_up") | alphas, tmp_path / "kohya.safetensors")
    return tmp_path / "kohya.safetensors"


@pytest.fixture
def ink(command: Command, kohya: Path) -> None:
    """Publish versions 1 to 3; 3 is the latest."""
    for _ in range(3):
        assert command("import", str(kohya), "--name", "ink").exit_code == 0
