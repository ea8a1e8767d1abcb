"""The processes that train together: one, or several that torchrun started, through accelerate.

Every process has the whole adapter, and gradients are averaged over processes. The frozen base is whole in every process too
(DDP), or sharded (FSDP): each process then holds a part of every block and gathers the block to compute it.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from longcat.model.device.choice import parse_device

_PATIENCE = timedelta(days=1)
"""Others wait for rank 0 while it validates or fills the cache; NCCL's own limit, 10 minutes, would end the training. A
process that dies does not make them wait: torchrun ends the group."""


class ProcessGroup:
    """The distributed process group, as one of its processes sees it. With one process, nothing here communicates."""

    def __init__(self, device: str) -> None:
        """Join the group. ``device`` is a name for ``longcat.model.loading``; under torchrun the local rank decides."""
        self._accelerator: Accelerator | None = None
        self._is_sharded = False
        self.rank, self.size = 0, 1
        self.device = parse_device(device)
        if torch.distributed.is_torchelastic_launched():
            patience = InitProcessGroupKwargs(timeout=_PATIENCE)
            is_cpu = self.device.type == "cpu"
            self._accelerator = Accelerator(cpu=is_cpu, mixed_precision="no", kwargs_handlers=[patience])
            self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes
            self.device = self._accelerator.device

    @property
    def is_rank_0(self) -> bool:
        """True in the one process that writes files, logs and validation pictures."""
        return self.rank == 0

    def shard(self, transformer: LongCatImageTransformer2DModel, adapter: Sequence[nn.Parameter]) -> None:
        """Keep this process's part of the base, on its device. The adapter stays whole: it is small."""
        # A block's result is a view; diffusers adds to it out of place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
            fully_shard(part, mesh=mesh, ignored_params=set(adapter))
        self._is_sharded = True

    @contextmanager
    def unsharded(self, transformer: nn.Module) -> Iterator[None]:
        """Gather the whole base, for a forward that does not go block by block. All processes have to call this."""
        parts = [part for part in transformer.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()

    def replicate(self, module: nn.Module) -> nn.Module:
        """Wrap the module for training: gradients of its trainable parameters are averaged over all processes."""
        if self._accelerator is None or self._is_sharded:
            return module
        _ignore_frozen(module)
        wrapped: nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    @contextmanager
    def accumulating(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Skip averaging gradients over processes, but for the ``last`` forward of a step."""
        if self._accelerator is None or self._is_sharded or last:
            yield
            return
        with self._accelerator.no_sync(module):
            yield

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients beside a sharded base. Beside a replicated one, DDP has done so in the backward pass."""
        if not self._is_sharded:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, average in zip(gradients, torch.split(averages, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(average.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self._accelerator is None:
            return value
        mean: Tensor = self._accelerator.reduce(value, "mean")
        return mean

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self._accelerator is None:
            return value
        total: Tensor = self._accelerator.reduce(value, "sum")
        return total

    def any(self, condition: bool) -> bool:
        """Return True if the condition holds in at least one process."""
        return condition if self.size == 1 else bool(self.mean(torch.tensor(float(condition), device=self.device)) > 0)

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Destroy the process group."""
        if self._accelerator is not None:
            self._accelerator.end_training()


def _ignore_frozen(module: nn.Module) -> None:
    """Have DDP leave out frozen parameters and buffers: they are the same everywhere, and it cannot send quantized ones.

    torch's method is private, but it is the one way to do so; ``tests/test_seams.py`` holds it.
    """
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    frozen += [name for name, _ in module.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)
