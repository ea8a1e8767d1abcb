"""The keys of other programs' LoRA files: the program that wrote a file, and the layer of each tensor.

The formats, and the sources that they were read in:

- diffusers and SimpleTuner: ``transformer.<module>.lora_A.weight``, the configuration in the header, or none, which means
  alpha = rank (diffusers ``utils/peft_utils.py``; SimpleTuner ``helpers/training/lora_format.py``, which also writes
  ``diffusion_model.<module>`` with ``.alpha`` tensors as its "comfyui" format).
- LongCat-Image's own trainer: a PEFT directory, ``base_model.model.<module>`` and ``adapter_config.json`` with the alpha
  (LongCat-Image ``train_examples/lora/train_lora.py``).
- ComfyUI: LongCat-Image is a Flux there (``comfy/model_base.py``, class ``LongCatImage``), so that its keys
  (``comfy/lora.py`` ``model_lora_keys_unet``, ``comfy/utils.py`` ``flux_to_diffusers``) are ``transformer.<module>``,
  and ``diffusion_model.`` or ``lora_unet_`` before Black Forest Labs' names, whose attention is fused. It reads alpha from
  ``.alpha`` tensors alone.
- LyCORIS: ``lycoris_`` and a name with underscores, also with the prefixes of the others; the tensors of LoKr and LoHa
  are in ``longcat.adapter.weights.lycoris``. SimpleTuner and kohya's scripts save what LyCORIS gives them.
- kohya: ``lora_unet_`` and a name with underscores, ``lora_down``, ``lora_up`` and ``.alpha`` (sd-scripts
  ``networks/lora_flux.py``).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from longcat.errors import AdapterError

Source = dict[str, Tensor]
"""The tensors of one layer in a file: down (A), up (B), alpha, magnitude (of DoRA), bias (of PEFT),
dora_scale (of LyCORIS and OneTrainer), diff and diff_b (``longcat.adapter.foreign.vectors``); LoKr's and LoHa's by name."""

_PREFIXES = MappingProxyType(
    {
        "base_model.model.": "official",
        "transformer.": "diffusers",
        "model.diffusion_model.": "comfyui",
        "diffusion_model.": "comfyui",
        "lora_unet_": "kohya",
        "lora_transformer_": "onetrainer",
        "lycoris_": "lycoris",
    }
)
_KEY = re.compile(
    r"(?P<name>.+?)\.(?:lora_(?P<letter>[AB])(?:\.\w+)?\.weight|lora[._](?P<word>down|up)\.weight|alpha"
    r"|lora_magnitude_(?P<vector>vector)(?:(?:\.\w+)?\.weight)?|(?P<factor>lokr_w[12](?:_[ab])?|hada_w[12]_[ab])"
    r"|lora_B(?:\.\w+)?\.(?P<bias>bias)|(?P<dora>dora_scale)|(?P<change>diff(?:_b)?|[wb]_norm))"
)
_SLOTS = MappingProxyType(
    {"A": "down", "B": "up", "down": "down", "up": "up", "alpha": "alpha", "vector": "magnitude", "bias": "bias",
     "dora_scale": "dora_scale",
     "diff": "diff", "w_norm": "diff", "diff_b": "diff_b", "b_norm": "diff_b"}
)  # fmt: skip
_OTHER_KINDS = MappingProxyType(
    {
        r"^(base_model\.model\.)?(text_encoders?(_\d)?\.|te\d?\.|lora_(prior_)?te\d*_)": "LoRA on the text encoder",
        r"\.lokr_t[12]\Z": "LoKr on convolutions",
        r"\.hada_t[12]\Z": "LoHa on convolutions",
        r"\.ia3_|\.on_input\Z": "IA3",
        r"\.b?oft_": "OFT",
        r"\.lora_(A|down|up)(\.\w+)?\.bias\Z|\.lora\.(up|down)\.bias\Z": "LoRA with biases",
        r"\.lora_mid\.": "LoRA on convolutions",
        r"\.set_weight\Z": "full weights",
    }
)
"""Names of the kinds of adapters that cannot be served, by a pattern of their keys."""


def reject_other_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Raise ``AdapterError``, which names the kind, for anything but LoRA, LoKr and LoHa on the transformer."""
    for pattern, kind in _OTHER_KINDS.items():
        for key in tensors:
            if re.search(pattern, key):
                raise unsupported_kind(kind, key)


def unsupported_kind(kind: str, key: str) -> AdapterError:
    """Return the error of an adapter of another kind than LoRA, LoKr and LoHa."""
    return AdapterError(
        "adapter_kind_unsupported",
        "is of the kind {kind} ({key!r}); only LoRA, LoKr and LoHa on the transformer's linear layers fit",
        remedy="train it as such, or merge it into the model with its own program and extract a LoRA",
        kind=kind,
        key=key,
    )


def no_weights() -> AdapterError:
    """Return the error of a file without weights of an adapter."""
    return AdapterError("adapter_empty", "holds no LoRA weights", remedy="save the adapter again")


def parse_keys(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Source]]:
    """Return a file's format, and its tensors by the name of their layer, without the format's prefix.

    Raises ``AdapterError`` for keys that are no part of a LoRA, or of several formats.
    """
    sources: dict[str, Source] = {}
    origins = set()
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(
                "adapter_foreign_key_unknown",
                "holds {key!r}, which is not a LoRA key of a known format",
                remedy="save the adapter in the format of diffusers, PEFT, ComfyUI or kohya",
                key=key,
            )
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
        origins.add(_PREFIXES.get(prefix, "diffusers"))
        name = match["name"].removeprefix(prefix)
        if match["change"]:  # ComfyUI's name of a norm's weight was "scale" before it was "weight"
            name = name.removesuffix(".scale")
        source = sources.setdefault(name, {})
        part = match["letter"] or match["word"] or match["vector"] or match["bias"]
        part = part or match["change"] or match["dora"] or "alpha"
        slot = match["factor"] or _SLOTS[part]
        if slot in source:
            raise AdapterError(
                "adapter_several_in_file",
                "holds {part} of {key!r} twice: the file has several adapters",
                remedy="save one of them alone",
                part=slot,
                key=key,
            )
        source[slot] = tensor
    if not sources:
        raise no_weights()
    if origins == {"diffusers", "comfyui"}:  # ComfyUI reads both, and has other names than diffusers for vectors
        origins = {"comfyui"}
    if len(origins) > 1:
        raise AdapterError(
            "adapter_formats_mixed",
            "mixes the keys of several formats: {formats}",
            remedy="split it into one file for each",
            formats=", ".join(sorted(origins)),
        )
    origin = origins.pop()
    if origin == "diffusers" and any("alpha" in source for source in sources.values()):
        origin = "comfyui"
    return origin, sources
