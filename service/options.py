"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from longcat.precision import Offload

_Command = TypeVar("_Command", bound=Callable[..., Any])

_DTYPES = ("auto", "float32", "bfloat16", "float16")


def model_options(command: _Command) -> _Command:
    """Which model, and how it is loaded: the fields of ``ModelConfig``."""
    for option in reversed(
        (
            click.option("--flavour", default="embedded", show_default=True,
                         help="final, dev, embedded, a directory or a hub id."),
            click.option("--revision", help="The hub's branch, tag or commit."),
            click.option("--precision", default="no_change", show_default=True,
                         help="The transformer's weights: no_change, int8-quanto, int4-quanto, fp8-quanto, int8-torchao, "
                              "fp8-torchao."),
            click.option("--text-encoder-precision", default="no_change", show_default=True,
                         help="The text encoder's weights, likewise."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."),
            click.option("--dtype", type=click.Choice(_DTYPES), default="auto", show_default=True,
                         help="What it computes in; auto is float32 on a CPU, else bfloat16."),
            click.option("--offload", type=click.Choice([o.value for o in Offload]), default="none", show_default=True,
                         help="Keep weights in main memory until they are needed: less GPU memory, slower."),
            click.option("--compile", is_flag=True, help="Run the blocks through torch.compile."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def storage_options(command: _Command) -> _Command:
    """Where adapters are."""
    for option in reversed(
        (
            click.option("--adapters", metavar="URI",
                         help="Where LoRA adapters are: file:///directory or s3://bucket/prefix."),
            click.option("--adapters-endpoint-url", metavar="URL", help="Of an S3 store that is not AWS."),
        )
    ):  # fmt: skip
        command = option(command)
    return command
