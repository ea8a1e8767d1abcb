"""The memory plan against what training allocates: steps of the embedded model on a simulated GPU, which counts bytes.

``python -m benchmarks.memory_plan`` needs g++ once, for the device (``tests/simulated_gpu``). Measured is the most memory in
use during a step, weights and optimizer state included. Working memory inside one operation of torch is not seen; a GPU's
allocator rounds sizes up, and libraries take memory of their own: a plan may fill nine tenths of a device.
``benchmarks.full_size_step`` measures a process's resident memory at full size.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from longcat.logs import silence_import_noise
from longcat.model.flavour import Flavour, resolve
from longcat.model.loading import load_transformer, load_vae
from longcat.model.precision import Offload, Precision
from longcat.model.shape import image_tokens
from longcat.sampling import latents
from tests.simulated_gpu import device as simulated
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.loop.optimizer import OptimizerSettings, make_optimizer
from trainer.loop.step import Batch, loss_of, with_prior
from trainer.memory.plan import plan
from trainer.memory.workload import Workload
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject
from trainer.model.offload import PlacementSettings, place

CUDA = torch.device("cuda", 0)
LOKR = {"algo": "lokr", "linear_dim": 10000, "factor": 4, "apply_preset": {"target_module": ["LongCatImageAttention"]}}


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """A setting that is measured."""

    precision: str = "no_change"
    dtype: str = "float32"
    every: int = 0
    """Every n-th block is checkpointed; 0 is none."""
    side_px: int = 128
    batch: int = 1
    rank: int = 16
    targets: str = "attention"
    optimizer: str = "adamw"
    dora: bool = False
    lokr: bool = False
    offload: int = 0
    """Blocks in a group; 0 is no offloading, -1 is layer by layer."""

    def __str__(self) -> str:
        names = {
            "DoRA": self.dora,
            "LoKr": self.lokr,
            f"offload {self.offload}": self.offload > 0,
            "leaves": self.offload < 0,
        }
        return (
            f"{self.precision:13}{self.dtype:9} {self.targets:11}{self.rank:3} {self.optimizer:18} every {self.every} "
            f"{self.side_px:4} px x {self.batch} {' '.join(name for name, is_so in names.items() if is_so)}"
        )

    @property
    def config(self) -> TrainConfig:
        """Return the trainer's configuration."""
        given: dict[str, Any] = {
            "model_flavour": "embedded", "base_model_precision": self.precision, "train_batch_size": self.batch,
            "lora_targets": self.targets, "optimizer": self.optimizer, "use_dora": self.dora, "lora_rank": self.rank,
            "enable_group_offload": self.offload != 0, "group_offload_blocks_per_group": max(1, self.offload),
            "group_offload_type": "leaf_level" if self.offload < 0 else "block_level",
        }  # fmt: skip
        return TrainConfig.model_validate(
            given | ({"lora_type": "lycoris", "lycoris_config": LOKR} if self.lokr else {})
        )

    def workload(self, flavour: Flavour) -> Workload:
        """Return the plan's workload."""
        config = self.config
        return Workload(
            flavour_folder=flavour.folder, precision=Precision(self.precision),
            text_encoder_precision=Precision.NO_CHANGE, dtype=self.dtype, lora_rank=config.lora_rank,
            lora_targets=self.targets, optimizer=self.optimizer, ema=False, batch=self.batch, width_px=self.side_px,
            height_px=self.side_px, prompt_tokens=flavour.settings.max_prompt_tokens, checkpointing=self.every,
            offload=config.enable_group_offload, offload_type=config.group_offload_type,
            blocks_per_group=config.group_offload_blocks_per_group, validation=True, device="cuda", use_dora=self.dora,
            lycoris=config.lycoris_config,
        )  # fmt: skip


USUAL: dict[str, Any] = {"dtype": "bfloat16", "side_px": 256, "batch": 2}
CASES = (
    *(PlanCase(batch=batch, side_px=side, every=every, dtype=dtype)
      for dtype, side, batch in (("float32", 256, 1), ("bfloat16", 128, 1), ("bfloat16", 256, 4), ("float16", 256, 2))
      for every in (0, 2, 1)),
    *(PlanCase(**USUAL, precision=precision.value, every=every)
      for precision in Precision if precision is not Precision.NO_CHANGE for every in (0, 2, 1)),
    *(PlanCase(**USUAL, precision=precision, dora=True, every=every)
      for precision in ("no_change", "int8-torchao", "int8-quanto", "int4-quanto") for every in (0, 1)),
    *(PlanCase(**USUAL, precision=precision, offload=blocks, every=every)
      for precision in ("no_change", "int8-quanto", "int8-torchao", "int4-quanto") for blocks in (1, 2, -1)
      for every in (0, 2, 1)),
    PlanCase(**USUAL, targets="official", optimizer="prodigy"), PlanCase(**USUAL, targets="official", rank=64, every=1),
    PlanCase(**USUAL, targets="all-linear", optimizer="adamw8bit", every=1, rank=64),
    PlanCase(**USUAL, targets="whole-transformer", optimizer="adamw-schedulefree"),
    PlanCase(**USUAL, lokr=True), PlanCase(**USUAL, lokr=True, precision="int8-torchao", every=1),
    *(PlanCase(precision=precision.value, dtype="bfloat16", every=1) for precision in Precision),
)  # fmt: skip
PRIOR_CASES = tuple(PlanCase(**USUAL, precision=name) for name in ("no_change", "int8-torchao", "int8-quanto"))


@click.command()
@click.option("--only", default="", help="Settings whose line contains this.")
def main(only: str) -> None:
    """Print planned and measured MiB."""
    if not simulated.is_loaded():
        os.execve(  # noqa: S606 - the same program again, with the device's library before torch's
            sys.executable,
            [sys.executable, "-m", "benchmarks.memory_plan", *sys.argv[1:]],
            os.environ | {"LD_PRELOAD": str(simulated.build())},
        )
    simulated.attach()
    silence_import_noise()
    flavour = resolve("embedded")
    print(f"{'MiB':86}{'planned':>10}{'measured':>10}  ratio")
    ratios = []
    for case in (case for case in CASES if only in str(case)):
        planned, measured = plan(case.workload(flavour)).peak_bytes["training"], measure(case, flavour)
        ratios.append(planned / measured)
        _show(str(case), planned, measured)
    print(f"{len(ratios)} settings: {min(ratios):.2f} to {max(ratios):.2f}")
    for case in (case for case in PRIOR_CASES if only in str(case)):
        made = plan(replace(case.workload(flavour), prior=True))
        _show(f"the base's own prediction, {case.precision}", made.prior_bytes, measure_prior(case, flavour))
    for side in (128, 256):
        made = plan(PlanCase(side_px=side).workload(flavour))
        encode, decode = measure_autoencoder(side, flavour)
        _show(f"encoding 4 pictures, {side} px", made.vae_encode_bytes, encode)
        _show(f"decoding a picture, {side} px", made.vae_decode_bytes, decode)


def measure(case: PlanCase, flavour: Flavour) -> int:
    """Return the bytes at the highest moment of the second step; the first one makes the optimizer's state."""
    gc.collect()
    before = simulated.used_bytes()
    transformer = placed(case, flavour)
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    if case.every:
        checkpoint_blocks(transformer, every=case.every)
    transformer.train()
    optimizer = make_optimizer(parameters, select(case.config, OptimizerSettings))

    def step() -> None:
        loss = loss_of(transformer, noise_on_device(case, flavour))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    counting = simulated.Counting()
    step()
    return counting.so_far.peak_bytes - before


def placed(case: PlanCase, flavour: Flavour) -> Any:
    """Return the transformer with its adapter on the device, as a training places it."""
    transformer = load_transformer(
        flavour,
        getattr(torch, case.dtype),
        precision=Precision(case.precision),
        device=CUDA,
        training=True,
        offload=Offload.GROUP if case.offload else Offload.NONE,
    )
    inject(transformer, select(case.config, LoraSettings))
    place(transformer, select(case.config, PlacementSettings), CUDA)
    return transformer


def measure_prior(case: PlanCase, flavour: Flavour) -> int:
    """Return the bytes at the highest moment of the base's own prediction, beyond its weights."""
    transformer = placed(case, flavour)
    batch = replace(noise_on_device(case, flavour), is_prior=True)
    with_prior(transformer, batch)
    before, counting = simulated.used_bytes(), simulated.Counting()
    with_prior(transformer, batch)
    return counting.so_far.peak_bytes - before


@torch.no_grad()
def measure_autoencoder(side_px: int, flavour: Flavour) -> tuple[int, int]:
    """Return the bytes of encoding four pictures, and of decoding one, weights included."""
    gc.collect()
    before = simulated.used_bytes()
    vae = load_vae(flavour, torch.bfloat16).to(CUDA)
    images = torch.randn(4, 3, side_px, side_px).bfloat16().to(CUDA).contiguous(memory_format=torch.channels_last)
    counting = simulated.Counting()
    encoded = latents.encode(vae, images)[:1].clone()
    encode = counting.so_far.peak_bytes - before
    del images
    counting = simulated.Counting()
    latents.decode(vae, encoded)
    return encode, counting.so_far.peak_bytes - before


def noise(case: PlanCase, flavour: Flavour, dtype: torch.dtype) -> Batch:
    """Return a batch of random latents and embeddings, on torch's default device."""
    tokens, count = flavour.settings.max_prompt_tokens, image_tokens(width_px=case.side_px, height_px=case.side_px)
    width = json.loads((Path(flavour.folder) / "transformer" / "config.json").read_text())["joint_attention_dim"]
    return Batch(
        noisy_BNC=torch.randn(case.batch, count, 64, dtype=dtype),
        target_BNC=torch.randn(case.batch, count, 64),
        sigma_B=torch.rand(case.batch, dtype=dtype),
        embeds_BLJ=torch.randn(case.batch, tokens, width, dtype=dtype),
        text_ids_L3=latents.text_ids(tokens),
        image_ids_N3=latents.image_ids(height_px=case.side_px, width_px=case.side_px, max_tokens=tokens),
        seed=0,
    )


def noise_on_device(case: PlanCase, flavour: Flavour) -> Batch:
    """Return the batch on the simulated GPU."""
    with CUDA:
        return noise(case, flavour, getattr(torch, case.dtype))


def storages(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Yield address and bytes of a tensor's storage; a quantized tensor has several."""
    if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from storages(getattr(tensor, name))
    else:
        storage = tensor.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()


def _show(what: str, planned: int, measured: int) -> None:
    print(f"{what:86}{planned / 2**20:10.1f}{measured / 2**20:10.1f}  {planned / measured:.3f}", flush=True)


if __name__ == "__main__":
    main()
