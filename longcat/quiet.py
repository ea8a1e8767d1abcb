"""Silence for known, harmless lines that libraries log when imported; everything else stays loud."""

import logging

_NOISE = {
    # torchao 0.18 beside torch 2.13: kernels for other GPUs, and enums that torch has come to know by itself.
    "torchao": "Failed to load ",
    "torch.utils._pytree": " is an Enum subclass and is now natively supported",
    # diffusers looks for torchao classes that 0.18 has moved; quantization here calls torchao directly.
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}


def silence_import_noise() -> None:
    """Drop exactly those lines. Call it before torch and diffusers are imported."""
    for name, text in _NOISE.items():
        logging.getLogger(name).addFilter(lambda record, text=text: text not in record.getMessage())
