"""Offloading: weights in main memory, with copies on the device while they compute.

Modules are in groups; one group at a time has its weights on the device. A call of any module of a group copies the whole
group to the device and releases the copies of the group before. Offloaded weights do not change, so nothing is copied back;
autograd keeps a released copy alive as long as a backward pass needs it.

The hooks of accelerate and diffusers do not fit: they move the tensors themselves, copy every weight back, and so move
tensors that a backward pass has saved. They also miss a module of which only the children are called, as
``longcat.sampling.forward`` does.

One thread at a time may call the modules of an ``Offloader``.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longcat.model.precision import Offload


@dataclass(frozen=True)
class _Weight:
    """A parameter or buffer of a module, and its tensor in main memory."""

    module: nn.Module
    name: str
    host: Tensor


_Group = tuple[_Weight, ...]


class Offloader:
    """The groups of modules that share a device."""

    def __init__(self, device: torch.device) -> None:
        """Start without groups. ``device`` is the one that computes."""
        self._device = device
        self._current: _Group = ()

    def add(self, modules: Iterable[nn.Module]) -> None:
        """Offload these modules as one group: the weights that they have themselves, not those of their children.

        The weights move to main memory. Code that reads a weight must call a module of the group first.
        """
        owners = list(modules)
        for module in owners:
            move_own(module, torch.device("cpu"))
        group = tuple(_Weight(module, name, tensor) for module in owners for name, tensor in _own(module))
        for module in {weight.module for weight in group}:
            module.register_forward_pre_hook(lambda *_: self._bring(group), prepend=True)

    def _bring(self, group: _Group) -> None:
        if self._current is group:
            return
        self._drop()
        self._current = group
        copies: dict[int, Tensor] = {}  # by tensor, because modules may share one
        try:
            for weight in group:
                if id(weight.host) not in copies:
                    copies[id(weight.host)] = _moved(weight.host, self._device)
                setattr(weight.module, weight.name, copies[id(weight.host)])
        except Exception:  # any, such as out of memory: a group is on the device as a whole or not at all
            self._drop()
            raise

    def _drop(self) -> None:
        for weight in self._current:
            setattr(weight.module, weight.name, weight.host)
        self._current = ()


def place(
    transformer: nn.Module, text_encoder: nn.Module, vae: nn.Module, *, device: torch.device, offload: Offload
) -> None:
    """Move the components to the device, or offload them: each as a whole, or their largest layers one by one.

    The text encoder's language head stays in main memory: ``longcat.sampling.encoding.rewrite`` moves it while it writes.
    """
    components = [
        [module for module in component.modules() if module is not getattr(component, "lm_head", None)]
        for component in (text_encoder, transformer, vae)
    ]
    offloader = Offloader(device)
    if offload is Offload.MODEL:
        for modules in components:
            offloader.add(modules)
        return
    # On the device stay the VAE, which is small and whose convolutions need more memory for results than for weights, and
    # the token embedding, of which a prompt needs a few rows: transformers generates on the device of the first weight.
    layers = [
        module
        for modules in components[:2]
        for module in modules
        if offload is Offload.GROUP and isinstance(module, nn.Linear)
    ]
    for layer in layers:
        offloader.add([layer])
    offloaded = set(layers)
    for modules in components:
        for module in modules:
            if module not in offloaded:
                move_own(module, device)


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Keep a copy of the module's own weights on the device within the context. One thread at a time may do so."""
    weights = [_Weight(module, name, tensor) for name, tensor in _own(module)]
    move_own(module, device)
    try:
        yield
    finally:
        for weight in weights:
            setattr(weight.module, weight.name, weight.host)


def move_own(module: nn.Module, device: torch.device) -> None:
    """Move the frozen weights that a module has itself, not those of its children."""
    for name, tensor in list(_own(module)):
        if tensor.device != device:
            setattr(module, name, _moved(tensor, device))


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    moved = tensor.detach().to(device, non_blocking=device.type != "cpu")
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
