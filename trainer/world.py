"""The processes that train together: one, or several that torchrun started, through accelerate.

The adapter is whole in every process, and its gradients are averaged. The frozen base is whole too (DDP), or split (FSDP):
then each process holds a part of every block and gathers the block when it computes.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed
from accelerate import Accelerator
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from longcat.loading import parse_device


class World:
    """A process among its fellows. With one process, everything here does nothing."""

    def __init__(self, device: str) -> None:
        """``device``: as ``longcat.loading`` names it; with several processes each takes the one of its local rank."""
        self._accelerator: Accelerator | None = None
        self._is_split = False
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

    def split(self, transformer: LongCatImageTransformer2DModel, adapter: Sequence[nn.Parameter]) -> None:
        """Leave each process its part of the base, on its device. What is trained stays whole: it is small."""
        # A block's result is a view; diffusers adds to it out of place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
            fully_shard(part, mesh=mesh, ignored_params=set(adapter))
        self._is_split = True

    @contextmanager
    def gathered(self, transformer: nn.Module) -> Iterator[None]:
        """The base whole in every process, for forwards that do not go block by block. All processes have to come here."""
        parts = [part for part in transformer.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()

    def shared(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training: its trainable gradients come out averaged over all processes."""
        if self._accelerator is None or self._is_split:
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
        if self._accelerator is None or self._is_split or last:
            yield
            return
        with self._accelerator.no_sync(module):
            yield

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """As DDP does it in the backward pass; beside a base that is split, here."""
        if not self._is_split:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, average in zip(gradients, torch.split(averages, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(average.view_as(gradient))

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
