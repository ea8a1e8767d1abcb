"""Logging as every process of Lithograph sets it up: one format, on stderr, and quiet about known, harmless lines."""

import logging
import sys
from functools import partial

_NOISE = {
    # torchao 0.18 beside torch 2.13: kernels for other GPUs, and enums that torch has come to know by itself.
    "torchao": "Failed to load ",
    "torch.utils._pytree": " is an Enum subclass and is now natively supported",
    "torchao.kernel.intmm": "Detected no triton",
    # diffusers looks for torchao classes that 0.18 has moved; quantization here calls torchao directly.
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}


def set_up_logging() -> None:
    """Log to stderr from INFO up, libraries from WARNING up. Call it once a process, from its entry point."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    logging.getLogger("lithograph").setLevel(logging.INFO)


def silence_import_noise() -> None:
    """Drop exactly the known lines. Call it before torch and diffusers are imported."""
    for name, text in _NOISE.items():
        logging.getLogger(name).addFilter(partial(_lacks, text))


def _lacks(text: str, record: logging.LogRecord) -> bool:
    return text not in record.getMessage()
