"""Non-public members of libraries: each is listed with its reason, and exists in the installed version."""

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from diffusers import LongCatImageTransformer2DModel
from diffusers.models.transformers.transformer_longcat_image import (
    LongCatImageAttnProcessor,
    LongCatImageSingleTransformerBlock,
)
from optimum import quanto
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from longcat.model.seams import SEAMS
from tests import ROOT
from trainer.model.forward import _LastBlock

PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
"""Documented members of named tuples, whose underscore only keeps them apart from fields."""
PACKAGES = ("benchmarks", "lithograph", "loadtest", "longcat", "recipes", "studio", "trainer")


def gradient_checkpointing() -> None:
    with torch.device("meta"):
        transformer = LongCatImageTransformer2DModel(num_layers=1, num_single_layers=1)
    transformer.enable_gradient_checkpointing()
    assert callable(transformer._gradient_checkpointing_func)


def last_block() -> None:
    def parameters(kind: Any) -> list[str]:
        return list(inspect.signature(kind.forward).parameters)

    assert parameters(_LastBlock) == parameters(LongCatImageSingleTransformerBlock)
    with torch.device("meta"):
        block = LongCatImageSingleTransformerBlock(dim=8, num_attention_heads=1, attention_head_dim=8)
    assert {name for name, _ in block.named_children()} == {"norm", "proj_mlp", "act_mlp", "proj_out", "attn"}


def peft_linear() -> None:
    layer = PeftLinear(nn.Linear(2, 2), "default", LoraConfig(r=1), r=1)
    for name in (
        "base_layer", "lora_A", "lora_B", "lora_dropout", "lora_magnitude_vector", "scaling", "active_adapters",
        "disable_adapters",
    ):  # fmt: skip
        assert hasattr(layer, name), name


CHECKS: Mapping[str, Callable[[], object]] = {
    "diffusers: ModelMixin._gradient_checkpointing_func": gradient_checkpointing,
    "diffusers: LongCatImageAttnProcessor._attention_backend": lambda: LongCatImageAttnProcessor()._attention_backend,
    "diffusers: LongCatImageAttnProcessor._parallel_config": lambda: LongCatImageAttnProcessor()._parallel_config,
    "diffusers: LongCatImageSingleTransformerBlock.__class__": last_block,
    "peft: Linear.__class__": peft_linear,
    "optimum-quanto: quanto::unpack": lambda: torch.ops.quanto.unpack.default,
    "optimum-quanto: WeightQBitsTensor.create": lambda: quanto.WeightQBitsTensor.create,
    "optimum-quanto: WeightQBytesTensor.create": lambda: quanto.WeightQBytesTensor.create,
    "torch: DistributedDataParallel._set_params_and_buffers_to_ignore_for_model": (
        lambda: DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ),
    "torch: _foreach_lerp_": lambda: torch._foreach_lerp_,
}


@pytest.mark.parametrize("seam", SEAMS)
def test_the_installed_library_has_it(seam: str) -> None:
    CHECKS[seam]()


def test_private_members_of_libraries_are_listed() -> None:
    listed = {seam.rpartition(": ")[2].rpartition(".")[2] for seam in SEAMS}
    trees = {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    ours = {name for tree in trees.values() for name in defined(tree)}
    for path, tree in trees.items():
        assert not (private_members(tree) - ours - listed - PUBLIC), path


def defined(tree: ast.AST) -> Iterator[str]:
    """Return the names that a module defines or assigns, including attributes of self."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store(), value=ast.Name(id="self" | "cls")):
                yield node.attr


def private_members(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="__class__", ctx=ast.Store()):
                names.add(node.attr)
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                names.add(name)
    return {name for name in names if name == "__class__" or re.fullmatch("_(?!_).*", name)}
