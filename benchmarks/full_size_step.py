"""One training step of a transformer of LongCat-Image's size on this machine: measured memory beside the plan's.

``python -m benchmarks.full_size_step``: 10 + 20 blocks, 24 heads of 128, 6.27 B random weights in int8 (quanto), each layer
quantized as it is made; LoRA of rank 16 on attention, AdamW, batch 1 at 256 px with 512 prompt tokens, every block
checkpointed. It takes about 8 GB and a few minutes. Memory is the process's peak resident memory.
"""

import json
import resource
import tempfile
import time
from pathlib import Path

import click
import torch
from diffusers import LongCatImageTransformer2DModel
from torch import nn

from longcat.model.precision import Precision
from longcat.model.quantized.quantize import quantize_layer, quantized_layers
from longcat.model.shape import image_tokens
from longcat.sampling import latents
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.loop.optimizer import OptimizerSettings, make_optimizer
from trainer.loop.step import Batch, loss_of
from trainer.memory.plan import plan
from trainer.memory.workload import Workload
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject

SIZE_PX, PROMPT_TOKENS, JOINT_WIDTH = 256, 512, 3584
SHAPE = {"num_layers": 10, "num_single_layers": 20, "num_attention_heads": 24, "attention_head_dim": 128,
         "joint_attention_dim": JOINT_WIDTH, "pooled_projection_dim": JOINT_WIDTH}  # fmt: skip


@click.command()
@click.option("--precision", type=click.Choice([p.value for p in Precision]), default="int8-quanto", show_default=True)
@click.option("--steps", default=2, show_default=True)
def main(precision: str, steps: int) -> None:
    """Make the model, train on noise, print seconds and MiB."""
    begin, before = time.perf_counter(), peak_mib()
    transformer = random_model(Precision(precision))
    config = TrainConfig(model_flavour="embedded", lora_rank=16, mixed_precision="bf16")
    parameters = inject(transformer, select(config, LoraSettings))
    checkpoint_blocks(transformer, every=1)
    transformer.train()
    optimizer = make_optimizer(parameters, select(config, OptimizerSettings))
    made, loaded = time.perf_counter() - begin, peak_mib()
    seconds = []
    for step in range(steps):
        begin = time.perf_counter()
        loss = loss_of(transformer, noise(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(loss)
        seconds.append(round(time.perf_counter() - begin, 1))
    planned = {name: round(size / 2**20) for name, size in planned_bytes(Precision(precision)).items()}
    figures = {
        "parameters": sum(parameter.numel() for parameter in transformer.parameters()), "made_seconds": round(made),
        "step_seconds": seconds, "before_mib": before, "loaded_mib": loaded, "peak_mib": peak_mib(), "planned_mib": planned,
    }  # fmt: skip
    print(json.dumps(figures, indent=1))


def random_model(precision: Precision) -> LongCatImageTransformer2DModel:
    """Return a transformer of random bfloat16 weights, each layer quantized as soon as it is made."""
    with torch.device("meta"):
        model = LongCatImageTransformer2DModel(**SHAPE).to(torch.bfloat16)
    grains = torch.randn(2**20, dtype=torch.float32).mul_(0.02).bfloat16()
    shrinking = set(quantized_layers(model))
    for name, module in list(model.named_modules()):
        for kind, parameter in list(module.named_parameters(recurse=False)):
            count = parameter.numel()
            filled = grains.repeat(-(-count // len(grains)))[:count].view(parameter.shape)
            setattr(module, kind, nn.Parameter(filled.clone(), requires_grad=False))
        if name in shrinking and precision is not Precision.NO_CHANGE:
            quantize_layer(model, name, precision, device=torch.device("cpu"), training=True)
    return model.requires_grad_(False)


def noise(seed: int) -> Batch:
    """Return a batch of one picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    tokens = image_tokens(width_px=SIZE_PX, height_px=SIZE_PX)
    return Batch(
        noisy_BNC=torch.randn(1, tokens, 64, generator=generator).bfloat16(),
        target_BNC=torch.randn(1, tokens, 64, generator=generator),
        sigma_B=torch.full((1,), 0.5),
        embeds_BLJ=torch.randn(1, PROMPT_TOKENS, JOINT_WIDTH, generator=generator).bfloat16(),
        text_ids_L3=latents.text_ids(PROMPT_TOKENS),
        image_ids_N3=latents.image_ids(height_px=SIZE_PX, width_px=SIZE_PX, max_tokens=PROMPT_TOKENS),
        seed=seed,
    )


def planned_bytes(precision: Precision) -> dict[str, int]:
    """Return the planned bytes of the same training; the other components, which do not count, are the embedded model's."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        embedded = Path(__file__).parent.parent / "longcat" / "embedded"
        for part in ("vae", "text_encoder"):
            (folder / part).mkdir()
            (folder / part / "config.json").write_bytes((embedded / part / "config.json").read_bytes())
        (folder / "transformer").mkdir()
        with torch.device("meta"):
            LongCatImageTransformer2DModel(**SHAPE).save_config(folder / "transformer")
        made = plan(
            Workload(
                flavour_folder=folder, precision=precision, text_encoder_precision=Precision.NO_CHANGE, dtype="bfloat16",
                lora_rank=16, lora_targets="attention", optimizer="adamw", ema=False, batch=1, width_px=SIZE_PX,
                height_px=SIZE_PX, prompt_tokens=PROMPT_TOKENS, checkpointing=1, offload=False, validation=False,
                device="cpu",
            )
        )  # fmt: skip
    phases = {str(phase): size for phase, size in made.peak_bytes.items()}
    return {"base": made.base_bytes, "activations": made.activation_bytes, **phases}


def peak_mib() -> int:
    """Return the process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
