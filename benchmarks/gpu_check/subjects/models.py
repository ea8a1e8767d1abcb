"""The model that is checked: LongCat-Image's sizes, or the embedded model's, with random weights made on the device.

Settings that name a model are followed with its real weights. Random weights have the libraries' own initialisation, so that
results are finite and every layer counts.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, LongCatImageTransformer2DModel
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.gpu_check.checks import Skipped
from benchmarks.gpu_check.settings import Settings
from longcat.model.device.choice import parse_device, parse_dtype
from longcat.model.flavour import EMBEDDED_FOLDER, PUBLISHED_FOLDER, Flavour, resolve
from longcat.model.loading import (
    Components,
    load,
    load_scheduler_config,
    load_text_encoder,
    load_transformer,
    load_vae,
)
from longcat.model.memory.in_use import memory_of
from longcat.model.offload import place
from longcat.model.precision import Offload, Precision
from longcat.model.published.models import ModelSettings
from longcat.model.quantized.quantize import check_precision, quantize_base
from longcat.model.tokenizer import load_tokenizer

GIB = 2**30
_AUTOENCODER = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "norm_num_groups": 32, "use_quant_conv": False,
    "use_post_quant_conv": False, "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip
"""The autoencoder's settings that its size does not depend on."""
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_TRANSFORMER_GIB, _TEXT_ENCODER_GIB = 12.0, 16.0
_FREE_BYTES = 40 * GIB
"""Free disk that a model of full size needs, with room for what else is written."""


class CheckedModel:
    """The model that is checked. Every method makes or loads a new one."""

    def __init__(self, settings: Settings) -> None:
        """``settings`` decide size, weights and device."""
        self._settings = settings
        self.device = parse_device(settings.device)
        self.dtype = parse_dtype("auto", self.device)
        self.is_random = settings.model is None

    @cached_property
    def flavour(self) -> Flavour:
        """The model's files; of random weights, those of its sizes."""
        if self._settings.model is not None:
            return resolve(self._settings.model)
        if self._settings.is_full:
            return Flavour(
                name="random", folder=PUBLISHED_FOLDER, revision=None, hash="0" * 64, settings=ModelSettings()
            )
        return resolve("embedded")

    @property
    def side_px(self) -> int:
        """The default side of a picture."""
        return self.flavour.settings.default_size_px

    @property
    def prompt_tokens(self) -> int:
        """Rows of a prompt."""
        return self.flavour.settings.max_prompt_tokens

    def transformer(self, **changes: Any) -> LongCatImageTransformer2DModel:
        """Make the frozen transformer on the device. ``changes`` of its sizes are for random weights."""
        self._require_memory(_TRANSFORMER_GIB)
        if not self.is_random and not changes:
            return load_transformer(self.flavour, self.dtype).to(self.device)
        with self._making():
            return self._frozen(LongCatImageTransformer2DModel.from_config(self.configuration("transformer") | changes))

    def text_encoder(self) -> Qwen2_5_VLForConditionalGeneration:
        """Make the frozen text encoder on the device."""
        self._require_memory(_TEXT_ENCODER_GIB)
        if not self.is_random:
            return load_text_encoder(self.flavour, self.dtype).to(self.device)
        config = self.configuration("text_encoder")
        if "rope_parameters" not in config["text_config"]:
            config["text_config"]["rope_parameters"] = _ROPE
            config["vision_config"] |= {"out_hidden_size": config["text_config"]["hidden_size"], "num_heads": 16}
        with self._making():
            return self._frozen(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)))

    def vae(self) -> AutoencoderKL:
        """Make the frozen VAE on the device, channels last."""
        if not self.is_random:
            return load_vae(self.flavour, self.dtype).to(self.device)
        with self._making():
            vae = AutoencoderKL.from_config(_AUTOENCODER | self.configuration("vae"))
        return self._frozen(vae).to(memory_format=torch.channels_last)

    def components(
        self,
        *,
        precision: Precision = Precision.NO_CHANGE,
        text_encoder_precision: Precision = Precision.NO_CHANGE,
        offload: Offload = Offload.NONE,
    ) -> Components:
        """Make or load a whole model. Raises ``UserError`` for what this device does not support."""
        if not self.is_random:
            return load(
                self.flavour, precision=precision, text_encoder_precision=text_encoder_precision, offload=offload,
                device=self._settings.device,
            )  # fmt: skip
        for kind in (precision, text_encoder_precision):
            check_precision(kind, device=self.device)
        is_offloaded = offload is not Offload.NONE
        text_encoder = self.text_encoder()
        del text_encoder.model.visual  # as ``load`` does
        quantize_base(text_encoder, text_encoder_precision, device=self.device, training=False, offload=offload)
        if is_offloaded:
            text_encoder.to("cpu")
        elif text_encoder_precision is Precision.NO_CHANGE:
            self._require_memory(_TEXT_ENCODER_GIB + _TRANSFORMER_GIB)
        transformer = self.transformer()
        quantize_base(transformer, precision, device=self.device, training=False, offload=offload)
        vae = self.vae()
        place(transformer, text_encoder, vae, device=self.device, offload=offload)
        return Components(
            flavour=self.flavour, precision=precision, text_encoder_precision=text_encoder_precision, device=self.device,
            dtype=self.dtype, transformer=transformer, vae=vae, text_encoder=text_encoder,
            tokenizer=load_tokenizer(EMBEDDED_FOLDER),
            scheduler_config=load_scheduler_config(resolve("embedded")),  # LongCat-Image's own
        )  # fmt: skip

    def written(self) -> str:
        """Return a directory, or name, of the model that ``lithograph`` loads; random weights are written once.

        Raises ``Skipped`` if the disk has too little room.
        """
        if self._settings.model is not None:
            return self._settings.model
        folder = self._settings.folder / f"model-{self._settings.size}"
        if (folder / "model_index.json").exists():
            return str(folder)
        free = shutil.disk_usage(self._settings.folder).free
        if self._settings.is_full and free < _FREE_BYTES:
            raise Skipped(f"the disk has {free // GIB} GiB free; a model of full size needs {_FREE_BYTES // GIB}")
        self._write(folder)
        return str(folder)

    def _write(self, folder: Path) -> None:
        for part, make in (("transformer", self.transformer), ("text_encoder", self.text_encoder), ("vae", self.vae)):
            module: Any = make()
            module.save_pretrained(folder / part)
            del module
        for part in ("scheduler", "tokenizer", "text_processor"):
            shutil.copytree(EMBEDDED_FOLDER / part, folder / part, dirs_exist_ok=True)
        if not self._settings.is_full:
            shutil.copy(EMBEDDED_FOLDER / "lithograph.json", folder)
        shutil.copy(EMBEDDED_FOLDER / "model_index.json", folder)  # last: the model is whole once it is there

    def configuration(self, part: str) -> dict[str, Any]:
        """Return the ``config.json`` of a part."""
        config: dict[str, Any] = json.loads((self.flavour.folder / part / "config.json").read_text(encoding="utf-8"))
        return config

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Make modules on the device, in the compute type, the same at every call."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        torch.manual_seed(0)
        try:
            with self.device:
                yield
        finally:
            torch.set_default_dtype(before)

    def _frozen(self, module: Any) -> Any:
        for parameter in module.parameters():  # buffers keep their type, as in models that are loaded
            parameter.data = parameter.data.to(self.dtype)
        frozen: nn.Module = module.eval().requires_grad_(False)
        return frozen

    def _require_memory(self, needed_gib: float) -> None:
        """Raise ``Skipped`` if the device is too small for what is made on it at full size."""
        total = memory_of(self.device)["total"] / GIB
        if self._settings.is_full and total < needed_gib:
            raise Skipped(f"needs {needed_gib:.0f} GiB of device memory for weights; there are {total:.0f}")
