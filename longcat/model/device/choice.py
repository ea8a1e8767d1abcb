"""The device and the dtype that compute, by name, and the compiler that ``torch.compile`` needs there."""

import shutil

import torch

from longcat.errors import DeviceError

_AMPERE = (8, 0)
"""Compute capability of the first NVIDIA GPUs that compute in bfloat16."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_device(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is CUDA, else MPS, else the CPU. Raises ``DeviceError`` if there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _unknown_device(name) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            "cuda_device_missing",
            "this process sees {count} CUDA devices",
            remedy="use cpu or another device",
            field="device",
            value=name,
            count=torch.cuda.device_count(),
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "mps_device_missing",
            "this machine has no Apple GPU that torch can use",
            remedy="use cpu",
            field="device",
            value=name,
        )
    if device.type not in ("cpu", "cuda", "mps"):
        raise _unknown_device(name)
    return device


def _unknown_device(name: str) -> DeviceError:
    return DeviceError(
        "device_unknown",
        "not a supported device",
        remedy="use auto, cpu, cuda, cuda:N or mps",
        field="device",
        value=name,
    )


def compilers(device: torch.device) -> tuple[str, ...]:
    """Return the programs of which ``torch.compile`` needs one."""
    return ("g++", "clang++", "c++") if device.type == "cpu" else ("gcc", "clang", "cc")


def check_compiler(device: torch.device) -> None:
    """Raise ``DeviceError`` if ``torch.compile`` would find no compiler, before anything is loaded."""
    names = compilers(device)
    if not any(map(shutil.which, names)):
        raise DeviceError(
            "compiler_missing",
            "torch.compile needs a compiler for {device}, and none of {names} is installed",
            remedy="leave --compile out, or install one (the container images have none)",
            field="compile",
            device=device.type,
            names=", ".join(names),
        )


def parse_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype of that name. Raises ``DeviceError``.

    ``auto`` is float32 on a CPU, else bfloat16; float16 on NVIDIA's GPUs before Ampere, which compute no bfloat16.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else _half(device)
    if name not in _DTYPES:
        raise DeviceError(
            "dtype_unknown",
            "not a known dtype",
            remedy="use auto, {known}",
            field="dtype",
            value=name,
            known=", ".join(_DTYPES),
        )
    return _DTYPES[name]


def _half(device: torch.device) -> torch.dtype:
    is_old = device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) < _AMPERE
    return torch.float16 if is_old else torch.bfloat16
