"""The alpha of each layer in another program's file: from its tensor, PEFT's configuration, or values in the file's header.

Trainers describe a file by plain values in its header, beside alpha tensors or alone: kohya's sd-scripts
(``train_network.py``) write ``ss_network_dim``, ``ss_network_alpha`` and JSON in ``ss_network_args``; others ``lora_alpha``,
``alpha`` or ``networkAlpha``. A file with alpha tensors or PEFT's configuration is read by those.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longcat.adapter.foreign.peft_config import PeftConfig
from longcat.adapter.manifest import is_alpha
from longcat.adapter.weights.file import alpha_in
from longcat.errors import AdapterError
from longcat.problem import Problem, show

_ALPHAS = frozenset({"alpha", "lora_alpha", "network_alpha"})
_RANKS = frozenset({"r", "rank", "dim", "lora_r", "lora_rank", "lora_dim", "network_rank", "network_dim"})
_RANK_STABILIZED = frozenset({"use_rslora", "rslora", "use_rs_lora", "rs_lora"})
_CONTAINERS = frozenset(
    {"lora_adapter_metadata", "adapter_config", "lora_config", "peft_config", "training_config", "config", "network",
     "network_args", "lora"}
)  # fmt: skip
"""Values that are JSON objects with such fields. Other objects may count the words of captions, such as "alpha"."""
_PREFIXES = re.compile(r"((ss|transformer|modelspec|lora)[_.])+")
_NUMBER = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DEPTH = 3


class Alphas:
    """The alphas of one file."""

    is_assumed = False
    """True after a layer whose alpha is given nowhere: its rank was assumed, as in the programs that write such files."""

    def __init__(self, config: PeftConfig | None, header: Mapping[str, str], ranks: Collection[int]) -> None:
        """``ranks``: ranks of the file's layers."""
        self._values = _HeaderValues.of(header)
        self._ranks = ranks
        if config is not None and "lora_alpha" not in config.model_fields_set and self._values.alphas:
            config = config.model_copy(update={"lora_alpha": self._values.alpha(ranks)})
        self._config = config

    def of(self, name: str, rank: int, tensor: Tensor | None) -> float:
        """Return a layer's alpha, whose scale is alpha / rank. Raises ``AdapterError`` if two sources contradict."""
        if self._config is not None:
            return _configured_alpha(name, rank, tensor, self._config)
        if tensor is not None:
            return alpha_in(name, tensor)
        if self._values.alphas:
            alpha = self._values.alpha(self._ranks)
            return PeftConfig(lora_alpha=alpha, use_rslora=self._values.use_rslora).scaled_alpha_of(name, rank)
        self.is_assumed = True
        return float(rank)

    def warnings(self) -> Iterator[Problem]:
        """Yield the header's invalid alphas, if the rank was assumed instead."""
        for key, value in self._values.unusable if self.is_assumed else ():
            yield Problem(
                code="adapter_alpha_unusable",
                template="its header gives {key} {value}, which is not an alpha; the rank was assumed",
                remedy_template="save it with the alpha that it was trained with",
                details={"key": key, "value": value},
            )


def _configured_alpha(name: str, rank: int, tensor: Tensor | None, config: PeftConfig) -> float:
    if config.rank_of(name) not in (None, rank):
        raise AdapterError(
            "adapter_rank_contradicts",
            "its configuration gives {module!r} rank {configured}, and its weights have rank {rank}",
            remedy="import it with its own configuration",
            module=name,
            configured=config.rank_of(name),
            rank=rank,
        )
    plain, scaled = config.alpha_of(name), config.scaled_alpha_of(name, rank)
    if tensor is None:
        return scaled
    written = alpha_in(name, tensor)
    # Programs without rsLoRA write the plain alpha. Tensors are narrower than JSON's numbers.
    if written not in {float(torch.tensor(alpha).to(tensor.dtype)) for alpha in (plain, scaled)}:
        raise AdapterError(
            "adapter_alphas_differ",
            "gives {module!r} two alphas: {alpha:g} in a tensor, {configured:g} in its configuration",
            remedy="import it with its own configuration",
            module=name,
            alpha=written,
            configured=scaled,
        )
    return scaled


@dataclass(frozen=True, kw_only=True)
class _HeaderValues:
    """The plain values of a header, each with its key."""

    alphas: tuple[tuple[str, float], ...]
    ranks: tuple[tuple[str, int], ...]
    use_rslora: bool
    unusable: tuple[tuple[str, str], ...]
    """Alphas that are not numbers: kohya writes ``None``, or ``Dynamic`` after it changed the ranks."""

    @classmethod
    def of(cls, header: Mapping[str, str]) -> "_HeaderValues":
        """Find the values in a header."""
        alphas, ranks, unusable, use_rslora = [], [], [], False
        for key, name, value in _plain_values(header, "", _DEPTH):
            number = _number(value)
            if name in _ALPHAS:
                if number is not None and is_alpha(number):
                    alphas.append((key, number))
                else:
                    unusable.append((key, show(value)))
            elif name in _RANKS and number is not None and number >= 1:
                ranks.append((key, int(number)))
            elif name in _RANK_STABILIZED:
                use_rslora |= str(value).lower() in ("true", "1")
        return cls(alphas=tuple(alphas), ranks=tuple(ranks), use_rslora=use_rslora, unusable=tuple(unusable))

    def alpha(self, ranks: Collection[int]) -> float:
        """Return the alpha for layers of these ranks. Raises ``AdapterError`` if the values contradict."""
        key, alpha = self.alphas[0]
        for other_key, other in self.alphas[1:]:
            if other != alpha:
                raise AdapterError(
                    "adapter_header_alphas_differ",
                    "its header gives two alphas: {key} {alpha:g} and {other_key} {other:g}",
                    remedy="save the adapter again, with one of them",
                    key=key,
                    alpha=alpha,
                    other_key=other_key,
                    other=other,
                )
        for rank_key, rank in self.ranks:
            if rank not in ranks:
                raise AdapterError(
                    "adapter_header_rank_contradicts",
                    "its header gives {key} {alpha:g} for {rank_key} {rank}, and its weights have rank {ranks}",
                    remedy="save the adapter again, with the alpha of these weights",
                    key=key,
                    alpha=alpha,
                    rank_key=rank_key,
                    rank=rank,
                    ranks=", ".join(map(str, sorted(ranks))),
                )
        return alpha


def _plain_values(fields: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Yield key, plain name and value of a header's fields, and of those of its JSON objects."""
    for key, value in fields.items():
        name = _plain_name(key)
        if name not in _CONTAINERS:
            yield path + key, name, value
        elif depth and isinstance(inner := _object(value), dict):
            yield from _plain_values(inner, f"{path}{key}.", depth - 1)


def _plain_name(key: str) -> str:
    """Return ``network_alpha`` for ``ss_network_alpha``, ``networkAlpha`` and ``transformer.network-alpha``."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower().replace("-", "_")
    return name if name in _ALPHAS | _RANKS | _CONTAINERS else _PREFIXES.sub("", name, count=1)


def _object(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _number(value: object) -> float | None:
    """Return the number that a value is or that its text is, in quotes or not."""
    if isinstance(value, str):
        text = value.strip().strip("\"'")
        return float(text) if _NUMBER.fullmatch(text) else None
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None
