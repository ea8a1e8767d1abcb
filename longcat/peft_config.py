"""PEFT's configuration of a LoRA: what it says of rank, alpha and variant. It stands beside an adapter or in its header.

Read as PEFT reads it (0.21: ``tuners/lora/config.py``, ``utils/other.py`` ``get_pattern_key``); variants whose update is not
alpha / rank times B A are refused. No torch.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longcat.errors import AdapterError

METADATA = "lora_adapter_metadata"
"""Where diffusers keeps an adapter's configuration in a file's header."""

_FILE = "adapter_config.json"
_VARIANTS = (
    "lora_bias", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
    "alora_invocation_tokens", "layer_replication", "target_parameters", "trainable_token_indices", "modules_to_save",
)  # fmt: skip
_CHANGES_THE_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)

_Value = TypeVar("_Value")
_Rank = Annotated[int, Field(gt=0)]
_Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PeftConfig(BaseModel):
    """The fields that a scale follows from. Names that are asked for are PEFT's: the module's, without a prefix."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    r: _Rank | None = None
    lora_alpha: _Alpha = 8
    """PEFT's default, which LongCat-Image's own trainer leaves."""
    rank_pattern: dict[str, _Rank] | None = None
    """Regular expressions of the ends of names to ranks; the first that matches counts."""
    alpha_pattern: dict[str, _Alpha] | None = None
    """Likewise to alphas."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank)."""
    use_dora: bool = False
    """Layers have magnitudes (``longcat.dora``)."""

    def rank_of(self, module: str) -> int | None:
        """A module's rank, if it is said."""
        return _matching(self.rank_pattern, module, self.r)

    def alpha_of(self, module: str) -> float:
        """A module's alpha as it is written."""
        return _matching(self.alpha_pattern, module, self.lora_alpha)

    def scaled_alpha_of(self, module: str, rank: int) -> float:
        """The alpha whose alpha / rank is the scale. rsLoRA: arXiv 2312.03732, equation 5."""
        return self.alpha_of(module) * (math.sqrt(rank) if self.use_rslora else 1)

    @classmethod
    def beside(cls, weights: Path) -> Self:
        """``adapter_config.json`` of the same directory. Raises ``AdapterError``."""
        try:
            text = (weights.parent / _FILE).read_bytes()
        except OSError as error:
            raise AdapterError(
                f"keeps its alpha in {_FILE}, and {weights.parent} has none that can be read ({error.strerror}); import "
                "the directory that its trainer wrote"
            ) from error
        return cls._checked(_FILE, _parse(_FILE, text))

    @classmethod
    def in_header(cls, header: Mapping[str, str]) -> Self | None:
        """What a file's header says, if anything, with or without ``transformer.`` before its names."""
        if METADATA not in header:
            return None
        said = {key.removeprefix("transformer."): value for key, value in _parse(METADATA, header[METADATA]).items()}
        return cls._checked(METADATA, said) if said.keys() & cls.model_fields.keys() else None

    @classmethod
    def _checked(cls, where: str, said: Mapping[str, Any]) -> Self:
        kind = said.get("peft_type") or "LORA"
        if kind != "LORA":
            raise AdapterError(f"is of PEFT's kind {kind!r} ({where}); only LORA can be served: train it so")
        variants = [name for name in _VARIANTS if said.get(name)]
        if (said.get("bias") or "none") != "none":
            variants.append("bias")
        if variants:
            raise AdapterError(
                f"sets {variants[0]} to {said[variants[0]]!r} ({where}); only plain LoRA can be served: train without"
            )
        initial = said.get("init_lora_weights")
        if isinstance(initial, str) and _CHANGES_THE_BASE.match(initial):
            raise AdapterError(
                f"was begun with init_lora_weights {initial!r} ({where}), which changes the model under it; convert it with "
                "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
            )
        try:
            return cls.model_validate(said)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise AdapterError(f"says {field} {first['input']!r} ({where}): {first['msg']}") from error


def _parse(where: str, text: str | bytes) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise AdapterError(f"has a configuration that is not JSON ({where}): {error}") from error
    if not isinstance(said, dict):
        raise AdapterError(f"has a configuration that is no JSON object ({where})")
    return said


def _matching(patterns: Mapping[str, _Value] | None, module: str, default: _Value) -> _Value:
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise AdapterError(f"has a pattern {pattern!r} that is no regular expression: {error}") from error
    return default
