"""The memory plan against measured allocations of training the embedded model, each setting in a process of its own.

``python -m benchmarks.memory_plan``. The measurement is the highest sum of torch's allocations and releases during a step,
from the profiler, plus the bytes of weights and optimizer state. The process's resident memory would also count the
interpreter, libraries and memory that malloc keeps, which is more than this model takes; ``benchmarks.full_size_step``
measures it at full size.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from longcat.logs import silence_import_noise
from longcat.model.flavour import Flavour, resolve
from longcat.model.loading import load_transformer, load_vae
from longcat.model.precision import Precision
from longcat.model.quantize import quantize_base
from longcat.model.shape import image_tokens
from longcat.sampling import latents
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.loop.optimizer import OptimizerSettings, make_optimizer
from trainer.loop.step import Batch, loss_of, with_prior
from trainer.memory.plan import Workload, plan
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """A measured setting."""

    precision: str = "no_change"
    dtype: str = "float32"
    every: int = 0
    """Interval of checkpointed blocks; 0 is none."""
    side_px: int = 128
    batch: int = 1
    targets: str = "attention"
    optimizer: str = "adamw"
    dora: bool = False

    def __str__(self) -> str:
        return (
            f"{self.precision:13}{self.dtype:10}{self.targets:11}{self.optimizer:10}every {self.every}  "
            f"{self.side_px:4} px  batch {self.batch}{'  DoRA' if self.dora else ''}"
        )

    @property
    def config(self) -> TrainConfig:
        """Return the trainer's configuration."""
        return TrainConfig.model_validate({
            "model_flavour": "embedded", "base_model_precision": self.precision, "train_batch_size": self.batch,
            "lora_targets": self.targets, "optimizer": self.optimizer, "use_dora": self.dora,
        })  # fmt: skip

    def workload(self, flavour: Flavour) -> Workload:
        """Return the plan's workload."""
        return Workload(
            flavour_folder=flavour.folder, precision=Precision(self.precision),
            text_encoder_precision=Precision.NO_CHANGE, dtype=self.dtype, lora_rank=self.config.lora_rank,
            lora_targets=self.targets, optimizer=self.optimizer, ema=False, batch=self.batch, width_px=self.side_px,
            height_px=self.side_px, prompt_tokens=flavour.settings.max_prompt_tokens, checkpointing=self.every,
            offload=False, validation=True, device="cpu", use_dora=self.dora,
        )  # fmt: skip


CASES = (
    *(PlanCase(batch=batch, side_px=side, every=every)
      for side, batch in ((128, 1), (256, 1), (256, 4)) for every in (0, 2, 1)),
    *(PlanCase(precision=name, dtype="bfloat16", side_px=256, batch=2, every=every)
      for name in ("no_change", "int8-torchao", "int8-quanto", "int4-quanto", "fp8-torchao") for every in (0, 1)),
    PlanCase(targets="official", optimizer="prodigy", side_px=192, batch=2),
    PlanCase(targets="all-linear", optimizer="adamw8bit", dtype="bfloat16", side_px=192, batch=2, every=1),
    *(PlanCase(dora=True, dtype=dtype, precision=precision, side_px=256, batch=2, every=every)
      for dtype, precision in (("float32", "no_change"), ("bfloat16", "no_change"), ("bfloat16", "int8-torchao"),
      ("bfloat16", "int8-quanto")) for every in (0, 1)),
)  # fmt: skip


PRIOR_CASES = (
    *(PlanCase(batch=batch, side_px=side) for side, batch in ((128, 1), (256, 4))),
    *(PlanCase(precision=name, dtype="bfloat16", side_px=256, batch=2)
      for name in ("no_change", "int8-torchao", "int8-quanto")),
    PlanCase(dora=True, side_px=256, batch=2),
)  # fmt: skip


@click.command()
@click.option("--case", "one", help="One setting, as JSON, in this process.")
@click.option("--only", default="", help="Only settings whose line contains this text.")
def main(one: str | None, only: str) -> None:
    """Print planned and measured MiB."""
    silence_import_noise()
    flavour = resolve("embedded")
    if one is not None:
        print(json.dumps(measure(PlanCase(**json.loads(one)), flavour)))
        return
    print(f"{'MiB':68}{'planned':>10}{'measured':>10}  ratio")
    for case in (case for case in CASES if only in str(case)):
        command = [sys.executable, "-m", "benchmarks.memory_plan", "--case", json.dumps(asdict(case))]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        _show(str(case), plan(case.workload(flavour)).peak_bytes["training"], json.loads(output.splitlines()[-1]))
    for case in PRIOR_CASES:
        made = plan(replace(case.workload(flavour), prior=True))
        _show(f"the base's own prediction, {case}", made.prior_bytes, measure_prior(case, flavour))
    for side in (128, 256):
        made = plan(PlanCase(side_px=side).workload(flavour))
        encode, decode = measure_autoencoder(side, flavour)
        _show(f"encoding 4 pictures, {side} px", made.vae_encode_bytes, encode)
        _show(f"decoding a picture, {side} px", made.vae_decode_bytes, decode)


def measure(case: PlanCase, flavour: Flavour) -> int:
    """Return the peak bytes of the second step; the first one creates the optimizer's state."""
    dtype = getattr(torch, case.dtype)
    transformer = load_transformer(flavour, dtype)
    quantize_base(transformer, Precision(case.precision), device=torch.device("cpu"), training=True)
    parameters = inject(transformer, select(case.config, LoraSettings))
    if case.every:
        checkpoint_blocks(transformer, every=case.every)
    transformer.train()
    optimizer = make_optimizer(parameters, select(case.config, OptimizerSettings))

    def step() -> None:
        loss = loss_of(transformer, noise(case, flavour, dtype))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    state = (value for values in optimizer.state.values() for value in values.values())
    tensors = [*transformer.parameters(), *transformer.buffers(), *(t for t in state if isinstance(t, Tensor))]
    static = sum({place: size for tensor in tensors for place, size in storages(tensor)}.values())
    return static + highest(step)


def measure_prior(case: PlanCase, flavour: Flavour) -> int:
    """Return the peak bytes of the base's own prediction, beyond its weights."""
    dtype = getattr(torch, case.dtype)
    transformer = load_transformer(flavour, dtype)
    quantize_base(transformer, Precision(case.precision), device=torch.device("cpu"), training=True)
    inject(transformer, select(case.config, LoraSettings))
    batch = replace(noise(case, flavour, dtype), is_prior=True)
    with_prior(transformer, batch)
    return highest(lambda: with_prior(transformer, batch))


def highest(run: Callable[[], object]) -> int:
    """Return the peak of torch's allocated bytes during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    results: Any = trace.profiler
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in results.kineto_results.events() if event.name() == "[memory]"
    )
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


@torch.no_grad()
def measure_autoencoder(side_px: int, flavour: Flavour) -> tuple[int, int]:
    """Return the bytes of encoding four pictures, and of decoding one, weights included."""
    vae = load_vae(flavour, torch.float32)
    weights = sum(parameter.nbytes for parameter in vae.parameters())
    images = torch.randn(4, 3, side_px, side_px).contiguous(memory_format=torch.channels_last)
    encoded = latents.encode(vae, images)
    encode = highest(lambda: latents.encode(vae, images)) + images.nbytes
    return weights + encode, weights + highest(lambda: latents.decode(vae, encoded[:1]))


def noise(case: PlanCase, flavour: Flavour, dtype: torch.dtype) -> Batch:
    """Return a batch of pictures of noise."""
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


def storages(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Return address and bytes of a tensor's storages; a quantized tensor has several."""
    if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from storages(getattr(tensor, name))
    else:
        storage = tensor.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()


def _show(what: str, planned: int, measured: int) -> None:
    print(f"{what:68}{planned / 2**20:10.1f}{measured / 2**20:10.1f}  {planned / measured:.3f}", flush=True)


if __name__ == "__main__":
    main()
