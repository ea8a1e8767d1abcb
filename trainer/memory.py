"""The memory plan: what a training takes, part by part and phase by phase, before anything is loaded. No torch.

Weights follow from the model's config.json (``trainer.footprint``), activations from a walk of the forward
(``trainer.activations``); ``benchmarks/memory_plan.py`` holds both against what training really allocates.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longcat.precision import Precision
from trainer.activations import MLP_RATIO, Walk, saved
from trainer.footprint import Linear, Transformer, read_autoencoder, read_text_encoder, read_transformer
from trainer.targets import endings_of, ends

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT32 = 4
_TOKEN_PX = 16
_STATE_BYTES = {"adamw": 8.0, "adamw-schedulefree": 8.0, "prodigy": 16.0, "adamw8bit": 2 + 2 * _FLOAT32 / 256}
"""Of an optimizer, a trained number: two averages; with prodigy also where it began and a sum."""
_DRAWN_STEPS = 50
"""Of a picture, each of which has its own modulations."""
_MODULATION_BYTES = 256 * 2**20
"""What ``longcat.forward`` keeps at most."""

Phase = Literal["loading", "caching captions", "caching latents", "training", "validation"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What decides how much memory a training takes."""

    flavour_folder: Path
    """Of the model, with transformer, vae and text_encoder in it."""
    precision: Precision | Literal["auto"]
    """Of the base; ``auto`` is for ``choose``."""
    text_encoder_precision: Precision | Literal["auto"]
    dtype: str
    """What is computed in: float32, bfloat16 or float16."""
    lora_rank: int
    lora_targets: str | tuple[str, ...]
    """attention, official, all-linear, or endings of names."""
    optimizer: str
    """adamw, adamw8bit, adamw-schedulefree or prodigy."""
    ema: bool
    batch: int
    """Pictures of a forward."""
    width_px: int
    """Of the largest pictures, like height_px."""
    height_px: int
    prompt_tokens: int
    """As the model reads them, padding included."""
    checkpointing: int | Literal["auto"] | None
    """Every n-th block computes its activations again: 0 or None is none, 1 is all."""
    offload: bool
    """Whether the base waits in main memory."""
    validation: bool
    """Whether pictures are drawn, at width_px x height_px, beside what is trained."""
    device: str = "cuda"
    """cpu, cuda or mps: a CPU holds the base unquantized while it loads."""
    lora_dropout: float = 0.1
    use_dora: bool = False
    parts: int = 1
    """Processes over which the base is split."""
    vae_batch: int = 4
    """Pictures encoded at once while latents are cached."""
    text_workers: int = 1
    """Captions embedded at once: on a CPU, its threads."""

    @property
    def image_tokens(self) -> int:
        """Of one picture."""
        return (self.width_px // _TOKEN_PX) * (self.height_px // _TOKEN_PX)

    @property
    def checkpointing_words(self) -> str:
        """For people."""
        if not self.checkpointing:
            return "no checkpointing"
        return "checkpointing " + ("every block" if self.checkpointing == 1 else f"1 block in {self.checkpointing}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A workload's memory on its device, in bytes."""

    workload: Workload
    base_bytes: int
    """The frozen transformer; offloaded or split, the part that is on the device."""
    drawn_base_bytes: int
    """What of it is there while pictures are drawn."""
    adapter_bytes: int
    """In float32."""
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activation_bytes: int
    """What autograd holds at the worst moment."""
    workspace_bytes: int
    """What one layer, the loss and the batch need beside it."""
    text_encoder_bytes: int
    """Weights and one caption's embedding."""
    vae_encode_bytes: int
    """Weights and the work on vae_batch pictures."""
    vae_decode_bytes: int
    """Weights and the work on one picture."""
    drawing_bytes: int
    """The forward that draws: two rows without gradients, the adapter's slot, modulations."""
    loading_bytes: int
    """What a CPU holds at the worst moment of loading; 0 on other devices, which never see an unquantized base."""

    @property
    def peak_bytes(self) -> dict[Phase, int]:
        """Most bytes at once, by phase, in the order in which they come."""
        trained = self.base_bytes + self.adapter_bytes + self.optimizer_bytes + self.ema_bytes
        peaks: dict[Phase, int] = {
            "caching captions": self.text_encoder_bytes,
            "caching latents": self.vae_encode_bytes,
        }
        if self.loading_bytes:
            peaks["loading"] = self.loading_bytes
        peaks["training"] = trained + self.gradient_bytes + self.activation_bytes + self.workspace_bytes
        if self.workload.validation:
            drawn = self.drawn_base_bytes - self.base_bytes
            peaks["validation"] = trained + drawn + self.drawing_bytes + self.vae_decode_bytes
        return peaks

    @property
    def most_bytes(self) -> int:
        """What the device has to have."""
        return max(self.peak_bytes.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what they are for; what takes none is left out."""
        load = self.workload
        parts = {
            f"base, {load.precision}{_where(load)}": self.base_bytes,
            f"adapter, rank {load.lora_rank}": self.adapter_bytes,
            "its gradients": self.gradient_bytes,
            f"optimizer, {load.optimizer}": self.optimizer_bytes,
            "EMA": self.ema_bytes,
            f"activations, {load.checkpointing_words}": self.activation_bytes,
            "workspace": self.workspace_bytes,
            f"text encoder, {load.text_encoder_precision}": self.text_encoder_bytes,
            f"encoding {load.vae_batch} pictures": self.vae_encode_bytes,
            "decoding a picture": self.vae_decode_bytes if load.validation else 0,
        }
        return {name: size for name, size in parts.items() if size}

    def table(self) -> str:
        """All of it, to read."""
        load = self.workload
        lines = [
            f"batch {load.batch} at {load.width_px}x{load.height_px} px, {load.prompt_tokens} prompt tokens, {load.dtype}"
        ]
        lines += [f"  {name:<42}{readable(size):>12}" for name, size in self.parts.items()]
        lines.append("most at once, by phase")
        most = self.most_bytes
        for phase, size in self.peak_bytes.items():
            lines.append(f"  {phase:<42}{readable(size):>12}{'  <- most' if size == most else ''}")
        return "\n".join(lines)


def plan(workload: Workload) -> Plan:
    """What it takes. Nothing may be ``auto``. Raises ``FlavourError`` if the model's configuration cannot be read."""
    assert workload.precision != "auto"
    assert workload.text_encoder_precision != "auto"
    assert workload.checkpointing != "auto"
    item = _ITEM_BYTES[workload.dtype]
    folder, on_cpu = workload.flavour_folder, workload.device == "cpu"
    model, eyes, reader = read_transformer(folder), read_autoencoder(folder), read_text_encoder(folder)
    pixels = workload.width_px * workload.height_px
    trained = _trained(model, workload)
    blocks = model.block_bytes(workload.precision, item)
    whole = model.top_bytes(item) + sum(model.block_bytes(Precision.NO_CHANGE, item))
    reading = reader.encoding_bytes(workload.prompt_tokens, item) * workload.text_workers
    words = reader.weight_bytes(workload.text_encoder_precision, item) + reading
    if on_cpu:
        words = max(words, reader.weight_bytes(Precision.NO_CHANGE, item))
    on_device = model.top_bytes(item) + (max(blocks) if workload.offload else sum(blocks))
    return Plan(
        workload=workload,
        # Of a base that is split, the block that computes and the next one are whole.
        base_bytes=on_device if workload.parts == 1 else on_device // workload.parts + 2 * max(blocks),
        drawn_base_bytes=on_device,
        adapter_bytes=trained * _FLOAT32,
        gradient_bytes=trained * _FLOAT32,
        optimizer_bytes=int(trained * _STATE_BYTES[workload.optimizer]),
        ema_bytes=trained * _FLOAT32 if workload.ema else 0,
        activation_bytes=_activations(model, workload),
        workspace_bytes=_workspace(model, workload),
        text_encoder_bytes=words,
        vae_encode_bytes=eyes.weight_bytes(item) + eyes.encoding_bytes(pixels, item) * workload.vae_batch,
        vae_decode_bytes=eyes.weight_bytes(item) + eyes.decoding_bytes(pixels, item),
        drawing_bytes=_drawing(model, workload),
        loading_bytes=whole if on_cpu else 0,
    )


def _is_target(workload: Workload, name: str) -> bool:
    return ".norm" not in name and any(ends(name, ending) for ending in endings_of(workload.lora_targets))


def _trained(model: Transformer, workload: Workload) -> int:
    targets = [layer for layer in model.targets() if _is_target(workload, layer.name)]
    matrices = sum(workload.lora_rank * (layer.width_in + layer.width_out) for layer in targets)
    return matrices + (sum(layer.width_out for layer in targets) if workload.use_dora else 0)


def _rows(workload: Workload) -> int:
    return workload.batch * (workload.image_tokens + workload.prompt_tokens)


def _activations(model: Transformer, workload: Workload) -> int:
    precision, item = Precision(workload.precision), _ITEM_BYTES[workload.dtype]
    weighs = precision.value.endswith("-torchao") or workload.offload
    left = saved(
        Walk(
            width=model.width,
            heads=model.heads,
            double_blocks=model.double_blocks,
            single_blocks=model.single_blocks,
            batch=workload.batch,
            image_tokens=workload.image_tokens,
            text_tokens=workload.prompt_tokens,
            item_bytes=item,
            is_half=workload.dtype == "float16",
            is_cuda=workload.device.startswith("cuda"),
            rank=workload.lora_rank,
            dropout=workload.lora_dropout,
            is_target=lambda name: _is_target(workload, name),
            uses_dora=workload.use_dora,
            frozen_saves="weight" if weighs else "input" if precision.value.endswith("-quanto") else "nothing",
        )
    )
    assert workload.checkpointing != "auto"
    most = left.peak(workload.checkpointing or 0)
    if workload.offload and precision is Precision.NO_CHANGE:  # what visits is what is held: counted with the base
        most -= (
            max(sum(_weight(layer) for layer in block if ".norm" not in layer.name) for block in model.blocks) * item
        )
    return most


def _workspace(model: Transformer, workload: Workload) -> int:
    """The backward pass through a single block's feed-forward, and the batch.

    Gradients before and after the activation (4 and 5 widths) and of three more tensors are there at once; under quanto,
    whose saved input of the last layer is released before, less. quanto's weights are there at full precision while used.
    """
    item, precision = _ITEM_BYTES[workload.dtype], Precision(workload.precision)
    is_quanto = precision.value.endswith("-quanto")
    widths = MLP_RATIO + 4 if is_quanto else 2 * MLP_RATIO + 4
    gradients = _rows(workload) * widths * model.width * item
    batch = workload.batch * workload.prompt_tokens * model.joint_width * item
    batch += 3 * workload.batch * workload.image_tokens * model.channels * _FLOAT32
    largest = max(_weight(layer) for block in model.blocks for layer in block)
    copies = 2 if precision is Precision.INT4_QUANTO else int(is_quanto)
    return gradients + batch + copies * largest * item


def _drawing(model: Transformer, workload: Workload) -> int:
    item = _ITEM_BYTES[workload.dtype]
    rows = 2 * (workload.image_tokens + workload.prompt_tokens)
    slot = sum(workload.lora_rank * (layer.width_in + layer.width_out) for layer in model.targets())
    numbers = (12 * model.double_blocks + 3 * model.single_blocks + 2) * model.width
    largest = max(_weight(layer) for block in model.blocks for layer in block)
    copies = 0 if workload.precision is Precision.NO_CHANGE else 1
    return (rows * (2 * MLP_RATIO + 4) * model.width + slot + copies * largest) * item + min(
        _MODULATION_BYTES, _DRAWN_STEPS * numbers * item
    )


def _weight(layer: Linear) -> int:
    return layer.width_in * layer.width_out


def _where(workload: Workload) -> str:
    return ", offloaded" if workload.offload else f", split in {workload.parts}" if workload.parts > 1 else ""


def readable(size: int) -> str:
    """Bytes, to read."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
