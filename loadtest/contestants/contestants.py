"""The command-line options that the scripts share, and the servers and adapters made from them."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from loadtest.contestants.comparison import OURS
from loadtest.servers import EMBEDDED, ServerSetup, baseline, service
from loadtest.traffic.adapters import RANK, make_adapters, publish

PLAIN = "plain"
BASELINES = {PLAIN: (1, 1), "plain-batch4": (4, 1), "plain-2workers": (1, 2)}
"""Largest batch and workers a device, by name."""


def add_options(parser: argparse.ArgumentParser, *, servers: Sequence[str], adapters: int) -> None:
    """Add the options of the servers under test."""
    parser.add_argument("--servers", default=",".join(servers), help=f"of {OURS}, {', '.join(BASELINES)}")
    parser.add_argument("--baseline-dtype", help="as --dtype if absent")
    add_service_options(parser, adapters=adapters)


def add_service_options(parser: argparse.ArgumentParser, *, adapters: int) -> None:
    """Add the options of the service."""
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--model", default=str(EMBEDDED), help="a model's directory")
    parser.add_argument("--adapters", type=int, default=adapters, help="how many; 0 for none")
    parser.add_argument("--targets", choices=("attention", "all-linear"), default="attention")
    parser.add_argument("--serve-options", default="", help="more options of `lithograph serve`, in quotes")
    parser.add_argument("--seed", type=int, default=0, help="of requests and adapters")


def contestants(arguments: argparse.Namespace, folder: Path) -> tuple[list[ServerSetup], tuple[str, ...]]:
    """Make and publish the adapters; return the servers and the adapters' names."""
    wanted = arguments.servers.split(",")
    files = make_adapters(folder / "files", arguments.adapters, targets=arguments.targets)
    recipes = []
    for name in wanted:
        if name == OURS:
            recipes.append(our_service(arguments, folder, files))
        else:
            batch, workers = BASELINES[name]
            recipes.append(
                baseline(
                    name,
                    dtype=arguments.baseline_dtype or arguments.dtype,
                    model=Path(arguments.model),
                    device=arguments.device,
                    adapters=folder / "files" if files else None,
                    threads=max(1, (os.cpu_count() or 1) // workers),
                    batch=batch,
                    workers=workers,
                )
            )
    return recipes, tuple(files)


def our_service(arguments: argparse.Namespace, folder: Path, files: dict[str, Path], *, slots: int = 8) -> ServerSetup:
    """Set up the service, with these adapters published in a folder."""
    if not files:
        return service_on(None, arguments)
    storage = (folder / "storage").as_uri()
    publish(files, storage=storage)
    return service_on(storage, arguments, required=tuple(files), slots=slots)


def service_on(
    storage: str | None,
    arguments: argparse.Namespace,
    *,
    required: Sequence[str] = (),
    slots: int = 8,
    endpoint_url: str | None = None,
) -> ServerSetup:
    """Set up the service on published adapters, or without any; it is ready once it serves the required ones."""
    options: list[str] = []
    if storage is not None:
        options += ["--adapters", storage, "--adapter-slots", str(slots), "--adapter-rank", str(RANK)]
    options += [text for name in required for text in ("--require-adapter", name)]
    if endpoint_url is not None:
        options += ["--adapters-endpoint-url", endpoint_url]
    return service(
        OURS,
        dtype=arguments.dtype,
        model=arguments.model,
        device=arguments.device,
        options=[*options, *shlex.split(arguments.serve_options)],
    )


def steps_option(text: str) -> tuple[int, ...]:
    """Parse ``4,8,12``, for argparse."""
    return tuple(map(int, text.split(",")))


def settings(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the settings for the report."""
    return dict(vars(arguments))
