"""The keys of other programs' LoRA files: which program wrote a file, and which layer each tensor belongs to.

What they write, and where it was read:

- diffusers and SimpleTuner: ``transformer.<module>.lora_A.weight``, the configuration in the header, or none, which means
  alpha = rank (diffusers ``utils/peft_utils.py``; SimpleTuner ``helpers/training/lora_format.py``, which also writes
  ``diffusion_model.<module>`` with ``.alpha`` tensors as its "comfyui" format).
- LongCat-Image's own trainer: a PEFT directory, ``base_model.model.<module>`` and ``adapter_config.json`` with the alpha
  (LongCat-Image ``train_examples/lora/train_lora.py``).
- ComfyUI: LongCat-Image is a Flux there (``comfy/model_base.py``, class ``LongCatImage``), so that its keys
  (``comfy/lora.py`` ``model_lora_keys_unet``, ``comfy/utils.py`` ``flux_to_diffusers``) are ``transformer.<module>``,
  and ``diffusion_model.`` or ``lora_unet_`` before Black Forest Labs' names, whose attention is fused. It reads alpha from
  ``.alpha`` tensors alone.
- kohya: ``lora_unet_`` and a name with underscores, ``lora_down``, ``lora_up`` and ``.alpha`` (sd-scripts
  ``networks/lora_flux.py``).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from longcat.errors import AdapterError

Source = dict[str, Tensor]
"""What a file holds under one name: down (A), up (B), alpha, magnitude (of DoRA)."""

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
    r"^(?P<name>.+?)\.(?:lora_(?P<letter>[AB])(?:\.\w+)?\.weight|lora[._](?P<word>down|up)\.weight|alpha"
    r"|lora_magnitude_(?P<vector>vector)(?:(?:\.\w+)?\.weight)?)$"
)
_SLOTS = MappingProxyType({"A": "down", "B": "up", "down": "down", "up": "up", "alpha": "alpha", "vector": "magnitude"})
_REFUSED = MappingProxyType(
    {
        r"^(base_model\.model\.)?(text_encoders?(_\d)?\.|te\d?\.|lora_(prior_)?te\d*_)": "adapts the text encoder",
        r"dora_scale": "uses DoRA as kohya writes it, of which programs disagree what it means; PEFT's is served",
        r"\.lokr_": "is a LoKr",
        r"\.hada_": "is a LoHa",
        r"\.ia3_|\.on_input$": "is an IA3",
        r"\.b?oft_": "is an OFT",
        r"\.lora_\w+(\.\w+)?\.bias$|\.lora\.(up|down)\.bias$": "changes biases",
        r"\.lora_mid\.": "is made for convolutions",
        r"\.diff(_b)?$|\.set_weight$|\.[wb]_norm$": "replaces whole weights",
    }
)


def refuse_other_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Raise ``AdapterError`` for what is no plain LoRA on the transformer, naming what it is."""
    for pattern, what in _REFUSED.items():
        for key in tensors:
            if re.search(pattern, key):
                raise AdapterError(
                    f"{what} ({key!r}); only plain LoRA on the transformer's linear layers can be served: train it so, or "
                    "let its program merge it and extract a LoRA"
                )


def parse_keys(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Source]]:
    """The format a file is in, and its tensors by the name of the layer that they belong to, without the format's prefix.

    Raises ``AdapterError`` for keys that are no part of a LoRA, or of several formats.
    """
    sources: dict[str, Source] = {}
    origins = set()
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise AdapterError(f"holds {key!r}, which is no part of a LoRA that is known here")
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
        origins.add(_PREFIXES.get(prefix, "diffusers"))
        source = sources.setdefault(match["name"].removeprefix(prefix), {})
        slot = _SLOTS[match["letter"] or match["word"] or match["vector"] or "alpha"]
        if slot in source:
            raise AdapterError(f"holds {slot} of {key!r} twice, for several adapters: save one alone")
        source[slot] = tensor
    if not sources:
        raise AdapterError("holds no LoRA weights")
    if len(origins) > 1:
        raise AdapterError(f"mixes the keys of {' and '.join(sorted(origins))}; split it into one file each")
    origin = origins.pop()
    if origin == "diffusers" and any("alpha" in source for source in sources.values()):
        origin = "comfyui"
    return origin, sources
