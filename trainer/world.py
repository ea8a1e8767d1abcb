"""The processes that train together: one, or several that torchrun started, through accelerate."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from longcat.loading import parse_device


class World:
    """A process among its fellows. With one process, everything here does nothing."""

    def __init__(self, device: str) -> None:
        """``device``: as ``longcat.loading`` names it; with several processes each takes the one of its local rank."""
        self._accelerator: Accelerator | None = None
        self.rank, self.size = 0, 1
        self.device = parse_device(device)
        if torch.distributed.is_torchelastic_launched():
            self._accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
            self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def shared(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training: its trainable gradients come out averaged over all processes."""
        if self._accelerator is None:
            return module
        # Frozen weights are the same everywhere: never sent, which quantized ones could not be.
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        frozen += [name for name, _ in module.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)  # type: ignore[no-untyped-call]
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    @contextmanager
    def accumulating(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients are averaged over processes with the last forward of a step only."""
        if self._accelerator is None or last:
            yield
            return
        with self._accelerator.no_sync(module):
            yield

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        if self._accelerator is None:
            return value
        return self._accelerator.reduce(value, "mean")  # type: ignore[no-any-return]

    def any(self, happened: bool) -> bool:
        """Whether it happened to any process."""
        return happened if self.size == 1 else bool(self.mean(torch.tensor(float(happened), device=self.device)) > 0)

    def wait(self) -> None:
        """Until all are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave."""
        if self._accelerator is not None:
            self._accelerator.end_training()
