"""PEFT's configuration of a LoRA (rank, alpha, variant), from a file beside the adapter or from the adapter's header.

It is read as PEFT 0.21 reads it (``tuners/lora/config.py``; patterns: ``longcat.adapter.foreign.patterns``). Variants whose
update is not alpha / rank times B A are rejected.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.adapter.foreign.patterns import Patterns
from longcat.adapter.manifest import Alpha, Rank
from longcat.adapter.weights.file import METADATA
from longcat.errors import AdapterError
from longcat.problem import show
from longcat.validation import problems_of

_FILE = "adapter_config.json"
_VARIANTS = (
    "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
    "alora_invocation_tokens", "layer_replication", "target_parameters", "trainable_token_indices", "modules_to_save",
)  # fmt: skip
_CHANGES_THE_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)


class PeftConfig(BaseModel):
    """The fields from which a layer's scale follows. Methods take a module's name without a prefix, as PEFT does."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    r: Rank | None = None
    lora_alpha: Alpha = 8
    """PEFT's default, which LongCat-Image's own trainer keeps."""
    rank_pattern: dict[str, Rank] | None = None
    """Ranks by patterns that match the end of a name; the first match counts."""
    alpha_pattern: dict[str, Alpha] | None = None
    """Alphas by patterns, as ``rank_pattern``."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank)."""
    use_dora: bool = False
    """Layers have magnitudes (``longcat.adapter.weights.dora``)."""

    def rank_of(self, module: str) -> int | None:
        """Return a module's rank, if the configuration gives one."""
        return self._ranks.get(module, self.r)

    def alpha_of(self, module: str) -> float:
        """Return a module's alpha as written in the configuration."""
        return self._alphas.get(module, self.lora_alpha)

    def scaled_alpha_of(self, module: str, rank: int) -> float:
        """Return the alpha for which alpha / rank is the scale. rsLoRA: arXiv 2312.03732, equation 5."""
        return self.alpha_of(module) * (math.sqrt(rank) if self.use_rslora else 1)

    @functools.cached_property
    def _ranks(self) -> Patterns[int | None]:
        return Patterns(self.rank_pattern or {})

    @functools.cached_property
    def _alphas(self) -> Patterns[float]:
        return Patterns(self.alpha_pattern or {})

    @classmethod
    def beside(cls, weights: Path) -> Self:
        """Read ``adapter_config.json`` of the same directory. Raises ``AdapterError``."""
        try:
            text = (weights.parent / _FILE).read_bytes()
        except OSError as error:
            raise AdapterError(
                "peft_config_missing",
                "the adapter's alpha is in {source}, which cannot be read: {reason}",
                remedy="import the directory that its trainer wrote",
                source=str(weights.parent / _FILE),
                reason=error.strerror or str(error),
            ) from error
        return cls._checked(_FILE, _parse(_FILE, text))

    @classmethod
    def in_header(cls, header: Mapping[str, str]) -> Self | None:
        """Read a file's header, whose names may have the prefix ``transformer.``; None if it holds no configuration."""
        if METADATA not in header:
            return None
        fields = {key.removeprefix("transformer."): value for key, value in _parse(METADATA, header[METADATA]).items()}
        return cls._checked(METADATA, fields) if fields.keys() & cls.model_fields.keys() else None

    @classmethod
    def _checked(cls, source: str, fields: Mapping[str, Any]) -> Self:
        kind = fields.get("peft_type") or "LORA"
        if kind != "LORA":
            raise AdapterError(
                "peft_type_unsupported",
                "{source} gives PEFT's type {kind!r}, and only LORA can be served",
                remedy="train it as LORA",
                source=source,
                kind=kind,
            )
        variants = [name for name in _VARIANTS if fields.get(name)]
        if (fields.get("bias") or "none") != "none":
            variants.append("bias")
        if variants:
            raise AdapterError(
                "peft_variant_unsupported",
                "{source} sets {option} to {setting}, and only plain LoRA can be served",
                remedy="train it without {option}",
                source=source,
                option=variants[0],
                setting=show(fields[variants[0]]),
            )
        initial = fields.get("init_lora_weights")
        if isinstance(initial, str) and _CHANGES_THE_BASE.match(initial):
            raise AdapterError(
                "peft_changes_the_base",
                "{source} gives init_lora_weights {setting!r}, which changed the base model",
                remedy="convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)",
                source=source,
                setting=initial,
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise AdapterError(
                "peft_config_invalid",
                "{source} is invalid: {cause}",
                remedy="save the adapter again",
                source=source,
                cause=next(problems_of(error, cls)),
            ) from error


def _parse(source: str, text: str | bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            "peft_config_not_json",
            "{source} is not JSON: {reason}",
            remedy="save the adapter again",
            source=source,
            reason=str(error),
        ) from error
    if not isinstance(fields, dict):
        raise AdapterError(
            "peft_config_not_object", "{source} is not a JSON object", remedy="save the adapter again", source=source
        )
    return fields
