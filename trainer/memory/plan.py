"""The memory plan: the bytes that a training takes, by part and by phase, before anything is loaded. No torch.

Weights follow from the model's config.json (``longcat.model.memory.weights``), activations from a walk of the forward
(``trainer.memory.activations``); ``benchmarks/memory_plan.py`` compares both with what training allocates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from longcat.model.memory.autoencoder import read_autoencoder
from longcat.model.memory.device import readable
from longcat.model.memory.weights import (
    ITEM_BYTES,
    Linear,
    Transformer,
    read_transformer,
)
from longcat.model.precision import Precision
from longcat.model.shape import MLP_RATIO, MODULATION_CACHE_BYTES, STEP_WIDTHS, modulation_numbers
from trainer.memory.activations import saved, saved_by_adapter
from trainer.memory.adapter_size import is_target, lycoris_options, slot_rank, trained_numbers
from trainer.memory.encoding import text_encoder_bytes
from trainer.memory.offloading import Groups, block_groups, layer_groups
from trainer.memory.tape import Walk
from trainer.memory.workload import Workload

_FLOAT32 = 4
_STATE_BYTES = {"adamw": 8.0, "adamw-schedulefree": 8.0, "prodigy": 16.0, "adamw8bit": 2 + 2 * _FLOAT32 / 256}
"""Bytes of optimizer state per trained number: two averages; with prodigy also the initial value and a sum."""
_PRIOR_WIDTHS = 3 * MLP_RATIO + 4
"""Widths of a row that are live at once in training's forward without gradients."""
_VALIDATION_STEPS = 50
"""Denoising steps of a validation picture; each step has modulations of its own."""

Phase = Literal["loading", "caching captions", "caching latents", "training", "prior preservation", "validation"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A workload's memory on its device, in bytes."""

    workload: Workload
    base_bytes: int
    """The frozen transformer; if offloaded or split, the part on the device."""
    validation_base_bytes: int
    """The part of the base on the device while validation pictures are generated."""
    adapter_bytes: int
    """In float32."""
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activation_bytes: int
    """Tensors that autograd holds at the peak."""
    workspace_bytes: int
    """Memory that one layer, the loss and the batch need beside the activations."""
    prior_bytes: int
    """A forward without gradients, for the base's own prediction of regularisation pictures; 0 without such pictures."""
    text_encoder_bytes: int
    """Weights, of the vision tower of a model that edits too, and one caption's embedding."""
    vae_encode_bytes: int
    """Weights and working memory for vae_batch pictures."""
    vae_decode_bytes: int
    """Weights and working memory for one picture."""
    denoising_bytes: int
    """A validation forward: two rows without gradients, the adapter's slot, modulations."""
    loading_bytes: int
    """Peak of loading on a CPU; 0 on other devices, which never hold an unquantized base."""

    @property
    def peak_bytes(self) -> dict[Phase, int]:
        """Most bytes at once by phase, in the order in which the phases run."""
        trained = self.base_bytes + self.adapter_bytes + self.optimizer_bytes + self.ema_bytes
        peaks: dict[Phase, int] = {
            "caching captions": self.text_encoder_bytes,
            "caching latents": self.vae_encode_bytes,
        }
        if self.loading_bytes:
            peaks["loading"] = self.loading_bytes
        peaks["training"] = trained + self.gradient_bytes + self.activation_bytes + self.workspace_bytes
        if self.prior_bytes:  # before the step's own forward, whose activations are not there yet
            peaks["prior preservation"] = trained + self.gradient_bytes + self.prior_bytes
        if self.workload.validation:
            more = self.validation_base_bytes - self.base_bytes
            peaks["validation"] = trained + more + self.denoising_bytes + self.vae_decode_bytes
        return peaks

    @property
    def most_bytes(self) -> int:
        """The memory that the device needs."""
        return max(self.peak_bytes.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part; parts of zero bytes are left out."""
        load = self.workload
        parts = {
            f"base, {load.precision}{_where(load)}": self.base_bytes,
            "adapter" if load.lycoris else f"adapter, rank {load.lora_rank}": self.adapter_bytes,
            "its gradients": self.gradient_bytes,
            f"optimizer, {load.optimizer}": self.optimizer_bytes,
            "EMA": self.ema_bytes,
            f"activations, {load.checkpointing_words}": self.activation_bytes,
            "workspace": self.workspace_bytes,
            "the base's own prediction": self.prior_bytes,
            f"text encoder, {load.text_encoder_precision}{', vision tower' if load.edits else ''}": (
                self.text_encoder_bytes
            ),
            f"encoding {load.vae_batch} pictures": self.vae_encode_bytes,
            "decoding a picture": self.vae_decode_bytes if load.validation else 0,
        }
        return {name: size for name, size in parts.items() if size}

    def table(self) -> str:
        """Return the plan as lines of text."""
        load = self.workload
        lines = [
            f"batch {load.batch} at {load.width_px}x{load.height_px} px{', each with its reference' if load.edits else ''}, "
            f"{load.prompt_tokens} prompt tokens, {load.dtype}"
        ]
        lines += [f"  {name:<42}{readable(size):>12}" for name, size in self.parts.items()]
        lines.append("most at once, by phase")
        most = self.most_bytes
        for phase, size in self.peak_bytes.items():
            lines.append(f"  {phase:<42}{readable(size):>12}{'  <- most' if size == most else ''}")
        return "\n".join(lines)


def plan(workload: Workload) -> Plan:
    """Plan the memory of a workload in which nothing is ``auto``.

    Raises ``FlavourError`` if the model's configuration cannot be read.
    """
    assert workload.precision != "auto"
    assert workload.checkpointing != "auto"
    item = ITEM_BYTES[workload.dtype]
    folder, on_cpu = workload.flavour_folder, workload.device == "cpu"
    model, vae = read_transformer(folder), read_autoencoder(folder)
    pixels = workload.width_px * workload.height_px
    trained = trained_numbers(model, workload)
    blocks = model.block_bytes(workload.precision, item)
    whole = model.top_bytes(item) + sum(model.block_bytes(Precision.NO_CHANGE, item))
    on_device = model.top_bytes(item) + (_group_bytes(model, workload) if workload.offload else sum(blocks))
    activations, gradients = _activations(model, workload)
    return Plan(
        workload=workload,
        # A split base holds two whole blocks at a time: the one that computes and the next one.
        base_bytes=on_device if workload.parts == 1 else on_device // workload.parts + 2 * max(blocks),
        validation_base_bytes=on_device,
        adapter_bytes=trained * _FLOAT32,
        gradient_bytes=trained * _FLOAT32,
        optimizer_bytes=int(trained * _STATE_BYTES[workload.optimizer]),
        ema_bytes=trained * _FLOAT32 if workload.ema else 0,
        activation_bytes=activations,
        workspace_bytes=gradients + _workspace(model, workload),
        prior_bytes=_forward_bytes(model, workload, _rows(workload) * _PRIOR_WIDTHS) if workload.prior else 0,
        text_encoder_bytes=text_encoder_bytes(workload),
        vae_encode_bytes=vae.weight_bytes(item) + vae.encoding_bytes(pixels, item) * workload.vae_batch,
        vae_decode_bytes=vae.weight_bytes(item) + vae.decoding_bytes(pixels, item),
        denoising_bytes=_denoising_bytes(model, workload),
        loading_bytes=whole if on_cpu else 0,
    )


def _rows(workload: Workload) -> int:
    return workload.batch * (workload.image_tokens + workload.prompt_rows)


def _activations(model: Transformer, workload: Workload) -> tuple[int, int]:
    """Return the bytes that autograd holds, and those of gradients, in the block's backward pass that needs the most."""
    precision, item = Precision(workload.precision), ITEM_BYTES[workload.dtype]
    saves_weight = precision.value.endswith("-torchao")
    walk = Walk(
        width=model.width,
        heads=model.heads,
        double_blocks=model.double_blocks,
        single_blocks=model.single_blocks,
        batch=workload.batch,
        image_tokens=workload.image_tokens,
        text_tokens=workload.prompt_rows,
        item_bytes=item,
        is_half=workload.dtype == "float16",
        is_cuda=workload.device.startswith("cuda"),
        rank=workload.lora_rank,
        dropout=workload.lora_dropout,
        lycoris_of=None if workload.lycoris is None else partial(lycoris_options, workload),
        is_target=lambda name: is_target(workload, name),
        uses_dora=workload.use_dora,
        frozen_saves="weight" if saves_weight else "input" if precision.value.endswith("-quanto") else "nothing",
    )
    assert workload.checkpointing != "auto"
    kept, every = saved(walk), workload.checkpointing or 0
    groups = _groups(model, workload, kept.read_layers) if workload.offload else None

    def weights(place: int) -> int:
        return groups.held(place, every=every) - max(groups.group_bytes) if groups else 0

    def gradients(place: int) -> int:
        return _gradients(model, workload, place)

    place, held = kept.peak(every, lambda place: weights(place) + gradients(place))
    held += weights(place)
    for layer, rows in (*model.embedders(workload.image_tokens, workload.prompt_rows), *model.modulations()):
        if walk.is_target(layer.name):
            held += saved_by_adapter(walk, layer.name, rows=rows, width_in=layer.width_in, width_out=layer.width_out)
    return held, gradients(place)


def _group_bytes(model: Transformer, workload: Workload) -> int:
    """Return the most bytes of an offloaded base that are on the device beside those that autograd keeps."""
    groups = _groups(model, workload, [frozenset()] * len(list(model.blocks)))
    return max(groups.group_bytes)


def _groups(model: Transformer, workload: Workload, read_layers: Sequence[frozenset[str]]) -> Groups:
    """Return the groups of an offloaded base. A torchao layer keeps its decoded weight, which activations count."""
    precision, item = Precision(workload.precision), ITEM_BYTES[workload.dtype]
    stored = [{layer.name: layer.stored(precision, item) for layer in block} for block in model.blocks]
    is_kept = not precision.value.endswith("-torchao")
    kept = [
        sum(size for name, size in block.items() if is_kept and name in read)
        for block, read in zip(stored, read_layers, strict=True)
    ]
    if workload.offload_type == "leaf_level":
        return layer_groups([max(block.values()) for block in stored], kept)
    return block_groups(model.block_bytes(precision, item), kept, blocks_per_group=workload.blocks_per_group)


def _gradients(model: Transformer, workload: Workload, place: int) -> int:
    """Return the bytes of gradients in the backward pass of a block's feed-forward.

    Those before and after the activation (4 widths each) and of another tensor are live at once; fewer under quanto, which
    releases the saved input of the last layer first. A double-stream block has a feed-forward for each stream; the last
    block's has no rows of the prompt.
    """
    is_quanto = Precision(workload.precision).value.endswith("-quanto")
    widths = MLP_RATIO + 1 if is_quanto else 2 * MLP_RATIO + 1
    last = model.double_blocks + model.single_blocks - 1
    is_joint = model.double_blocks <= place < last
    rows = workload.image_tokens + workload.prompt_rows if is_joint else workload.image_tokens
    return workload.batch * max(rows, workload.prompt_rows) * widths * model.width * ITEM_BYTES[workload.dtype]


def _workspace(model: Transformer, workload: Workload) -> int:
    """Return the bytes of the batch, and of the largest weight as it is decoded while it is used.

    quanto decodes it to the compute type in the backward pass; torchao decodes one in fp8 through float32.
    """
    item, precision = ITEM_BYTES[workload.dtype], Precision(workload.precision)
    batch = workload.batch * workload.prompt_rows * model.joint_width * item
    batch += 3 * workload.batch * workload.image_tokens * model.channels * _FLOAT32
    largest = max(_weight(layer) for block in model.blocks for layer in block)
    is_quanto = precision.value.endswith("-quanto")
    decoded = item if is_quanto else item + _FLOAT32 if precision is Precision.FP8_TORCHAO else 0
    return batch + largest * decoded


def _forward_bytes(model: Transformer, workload: Workload, widths: int) -> int:
    """Return the bytes of a forward without gradients, in which ``widths`` of one block's rows are live at once."""
    largest = max(_weight(layer) for block in model.blocks for layer in block)
    copies = 0 if workload.precision is Precision.NO_CHANGE else 1
    return (widths * model.width + copies * largest) * ITEM_BYTES[workload.dtype]


def _denoising_bytes(model: Transformer, workload: Workload) -> int:
    item = ITEM_BYTES[workload.dtype]
    rows = 2 * (workload.image_tokens + workload.prompt_rows)
    rank = slot_rank(model, workload)
    held = {*model.targets(), *(layer for layer in model.linears() if is_target(workload, layer.name))}
    slot = sum(rank * (layer.width_in + layer.width_out) for layer in held)
    blocks = {"double_blocks": model.double_blocks, "single_blocks": model.single_blocks}
    modulations = min(
        MODULATION_CACHE_BYTES, _VALIDATION_STEPS * item * modulation_numbers(**blocks, width=model.width)
    )
    return _forward_bytes(model, workload, rows * STEP_WIDTHS) + slot * item + modulations


def _weight(layer: Linear) -> int:
    return layer.width_in * layer.width_out


def _where(workload: Workload) -> str:
    return ", offloaded" if workload.offload else f", split in {workload.parts}" if workload.parts > 1 else ""
