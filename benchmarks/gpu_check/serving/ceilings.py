"""Versions, and the device's own speed: matrix products, attention by backend, copies."""

import platform
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import GIB, seconds_of

_PACKAGES = (
    "torch",
    "torchao",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "optimum-quanto",
    "litserve",
    "triton",
)
_BACKENDS = (
    SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
)  # fmt: skip


def run(kit: Kit) -> None:
    """Check the machine."""
    kit.checks.run("machine", partial(_machine, kit))
    for dtype in (torch.bfloat16, torch.float32):
        kit.checks.run(f"product, {str(dtype).removeprefix('torch.')}", partial(_product, kit, dtype))
    for backend in _BACKENDS:
        kit.checks.run(f"attention, {backend.name.lower()}", partial(_attention, kit, backend))
    for pinned in (False, True):
        for to_device in (True, False):
            way = "to the device" if to_device else "to the host"
            kit.checks.run(f"copy {way}, {'pinned' if pinned else 'pageable'}", partial(_copy, kit, pinned, to_device))


def product_flop_per_second(device: torch.device, dtype: torch.dtype, *, side: int) -> float:
    """Return the speed of a square product of this side."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b, device)


def product_side(kit: Kit) -> int:
    """Return a side at which a product is limited by arithmetic."""
    return 8192 if kit.settings.is_full else 512


def _machine(kit: Kit, check: Check) -> None:
    check.note(python=platform.python_version(), cpus=torch.get_num_threads())
    for package in _PACKAGES:
        try:
            check.note(**{package: version(package)})
        except PackageNotFoundError:
            check.note(**{package: "not installed"})
    if kit.settings.is_cpu:
        return
    properties = torch.cuda.get_device_properties(kit.device)
    check.note(
        device=properties.name, memory_gib=properties.total_memory / GIB, cuda=str(torch.version.cuda),
        capability=".".join(map(str, torch.cuda.get_device_capability(kit.device))),
    )  # fmt: skip


def _product(kit: Kit, dtype: torch.dtype, check: Check) -> None:
    check.note(tflop_per_s=product_flop_per_second(kit.device, dtype, side=product_side(kit)) / 1e12)


def _attention(kit: Kit, backend: SDPBackend, check: Check) -> None:
    """Measure attention over a prompt and a picture of the default size, with two rows."""
    heads, width = (24, 128) if kit.settings.is_full else (4, 64)
    tokens = (kit.model.side_px // 16) ** 2 + kit.model.prompt_tokens
    q, k, v = (torch.randn(2, heads, tokens, width, device=kit.device, dtype=torch.bfloat16) for _ in range(3))
    attend = partial(F.scaled_dot_product_attention, q, k, v)
    with sdpa_kernel(backend):
        try:
            attend()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
                raise
            raise Skipped(f"torch has no such kernel for it here ({str(error).splitlines()[0]})") from error
        seconds = seconds_of(attend, kit.device, rounds=kit.rounds)
    check.note(ms=seconds * 1000, tflop_per_s=4 * 2 * heads * tokens**2 * width / seconds / 1e12)


def _copy(kit: Kit, pinned: bool, to_device: bool, check: Check) -> None:
    if kit.settings.is_cpu:
        raise Skipped("a CPU copies nothing to a device")
    count = GIB if kit.settings.is_full else 2**22
    host = torch.empty(count, dtype=torch.uint8, pin_memory=pinned)
    on_device = torch.empty(count, dtype=torch.uint8, device=kit.device)
    target, source = (on_device, host) if to_device else (host, on_device)
    seconds = seconds_of(lambda: target.copy_(source, non_blocking=pinned), kit.device, rounds=kit.rounds)
    check.note(gib_per_s=count / GIB / seconds)
