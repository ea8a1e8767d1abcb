"""The members of other libraries that Lithograph uses although they are not public, each with its reason. No torch.

``tests/test_seams.py`` fails, by name, when a version of the library lacks one, and when code uses one that is not listed.
The libraries are pinned in ``constraints.txt``; LitServe's members are listed in ``service.process.litserve_members``.
"""

from collections.abc import Mapping
from types import MappingProxyType

SEAMS: Mapping[str, str] = MappingProxyType(
    {
        "diffusers: ModelMixin._gradient_checkpointing_func": (
            "trainer.model.checkpointing wraps it: diffusers' switch is for all blocks or none, not for every n-th"
        ),
        "diffusers: LongCatImageAttnProcessor._attention_backend": (
            "trainer.model.forward passes it on, so that diffusers' choice of attention kernel stays in force"
        ),
        "diffusers: LongCatImageAttnProcessor._parallel_config": "likewise, for context parallelism",
        "diffusers: LongCatImageSingleTransformerBlock.__class__": (
            "trainer.model.forward reassigns the last block's class: a wrapper would change parameter names, which offload "
            "hooks, FSDP and PEFT go by"
        ),
        "peft: Linear.__class__": (
            "trainer.model.forward reassigns it to a subclass that computes the same in one operation: once adapters are "
            "injected, PEFT has no hook for a layer's forward"
        ),
        "optimum-quanto: quanto::unpack": (
            "longcat.model.quantized.quantize overrides this operator: quanto's own compiles C++ or CUDA for minutes on "
            "first use"
        ),
        "optimum-quanto: WeightQBitsTensor.create": (
            "longcat.model.quantized.quantize replaces it, so that weights keep their plain form on every device: packed "
            "ones need a compiler, or are eight times as slow in a backward pass"
        ),
        "optimum-quanto: WeightQBytesTensor.create": "likewise",
        "torch: DistributedDataParallel._set_params_and_buffers_to_ignore_for_model": (
            "trainer.loop.distributed keeps frozen weights out of the broadcast at the start: quantized ones cannot be sent"
        ),
        "torch: _foreach_lerp_": "the recipes' weight averages update all tensors in one call",
    }
)
"""Reason by library and member."""
