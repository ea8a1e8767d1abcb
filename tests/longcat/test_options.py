"""Options: secrets, times, and those that need another."""

import math
import os
from pathlib import Path
from typing import Annotated, Any

import click
import httpx
import psutil
import pytest
from click.testing import CliRunner
from pydantic import Field

from longcat.errors import ConfigError
from longcat.options import Configuration, Flag, build, command_options, configure, options_of
from service.commands import serve as serve_command
from service.config import ServiceConfig
from service.run_folder import METRICS_VARIABLE
from studio.config import StudioConfig
from tests.conftest import serve


class Keys(Configuration):
    """A configuration with a secret."""

    key: Annotated[str | None, Field(repr=False), Flag(name="api-key", is_secret=True)] = None
    """Key of the API."""


@click.command()
@command_options(Keys)
def command(**values: Any) -> None:
    """Print the key's length."""
    click.echo(len(configure(Keys, values).key or ""))


@pytest.mark.parametrize("content", ["hunter2", "hunter2\n", "  hunter2\r\n"])
def test_a_secret_is_read_from_a_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    assert build(Keys, {"api_key_file": path}).key == "hunter2"
    runner = CliRunner()
    assert runner.invoke(command, ["--api-key-file", str(path)]).output == "7\n"
    assert runner.invoke(command, env={"X_API_KEY_FILE": str(path)}, auto_envvar_prefix="X").output == "7\n"
    assert runner.invoke(command, ["--api-key", "hunter2"]).output == "7\n"


def test_a_secret_without_a_usable_file_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"hunter2\xff")
    for path, reason in (
        (empty, "holds nothing"),
        (binary, "not UTF-8"),
        (tmp_path, "directory"),
        (tmp_path / "no", "No such"),
    ):
        with pytest.raises(ConfigError, match=reason) as raised:
            build(Keys, {"api_key_file": path})
        assert raised.value.problems[0].field == "--api-key-file"
        assert "hunter2" not in str(raised.value)
    key = tmp_path / "key"
    key.write_text("hunter2")
    with pytest.raises(ConfigError, match="--api-key is given, too") as raised:
        build(Keys, {"api_key_file": key, "api_key": "hunter3"})
    assert "hunter" not in str(raised.value)


@pytest.mark.parametrize("secret", ["", " ", "two words", "line\nline", "ключ-hunter2", "hunter2\x00"])
def test_a_secret_that_no_request_can_send_is_an_error_that_does_not_show_it(tmp_path: Path, secret: str) -> None:
    path = tmp_path / "key"
    path.write_text(f"x{secret}x y")
    for given, name in (({"api_key": secret}, "--api-key"), ({"api_key_file": path}, "--api-key-file")):
        with pytest.raises(ConfigError) as raised:
            build(Keys, given)
        assert (raised.value.problems[0].code, raised.value.problems[0].field) == ("secret_invalid", name)
        assert "hunter" not in str(raised.value)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e12])
def test_a_time_that_no_clock_reaches_is_an_error(seconds: float) -> None:
    options = [option for option in options_of(ServiceConfig) if option.name.endswith("-seconds")]
    assert len(options) > 5
    for option in options:
        values = {"adapters": "file:///adapters", "adapter_folder": Path(), option.parameter: seconds}
        with pytest.raises(ConfigError) as raised:
            build(ServiceConfig, values)
        assert [problem.field for problem in raised.value.problems] == [option.name]


@pytest.mark.parametrize("arguments", [("--import-from", "."), ("--adapter-prefetch",), ("--require-adapter", "ink")])
def test_an_option_about_adapters_needs_their_storage(arguments: tuple[str, ...]) -> None:
    refused = CliRunner().invoke(serve_command, arguments)
    assert (refused.exit_code, f"{arguments[0]} needs --adapters" in refused.output) == (2, True)
    assert METRICS_VARIABLE not in os.environ


def test_a_refused_start_leaves_no_variable_to_what_runs_after_it(tmp_path: Path) -> None:
    refused = CliRunner().invoke(serve_command, ["--api-keys-file", str(tmp_path / "none")])
    assert isinstance(refused.exception, ConfigError)
    assert METRICS_VARIABLE not in os.environ


def test_every_secret_can_be_a_file_and_none_is_shown() -> None:
    secrets = {
        option.name: option
        for kind in (ServiceConfig, StudioConfig)
        for option in options_of(kind)
        if option.flag.is_secret
    }
    assert secrets.keys() == {"--admin-key", "--webhook-secret", "--token", "--service-api-key", "--caption-key"}
    assert not any(option.info.repr for option in secrets.values())


def test_a_servers_key_from_a_file_is_in_no_process_list_and_no_log(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("Xylophon-4711\n")
    adapters = (tmp_path / "adapters").as_uri()
    with serve(tmp_path, "--adapters", adapters, "--admin-key-file", str(key), cold=True) as server:
        url = f"{server.url}/v1/adapters/missing/load"
        assert httpx.post(url).status_code == 401
        assert httpx.post(url, headers={"Authorization": "Bearer Xylophon-4711"}).status_code == 404
        main = psutil.Process(server.process.pid)
        for process in (main, *main.children(recursive=True)):
            assert not [argument for argument in process.cmdline() if "Xylophon" in argument]
        assert "Xylophon" not in httpx.get(f"{server.url}/v1/info").text
        assert "Xylophon" not in server.log_text()
