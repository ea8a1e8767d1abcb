"""Patterns of module names in a foreign file: PEFT's semantics, and bounded matching time."""

import json
from pathlib import Path

import pytest
from peft.utils.other import get_pattern_key

from longcat.adapter.foreign.patterns import Patterns
from longcat.adapter.foreign.reading import read_foreign
from longcat.adapter.modules import lora_targets
from longcat.errors import AdapterError
from longcat.model.loading import Components
from tests.longcat.adapter.foreign.test_reading import PREFIXED, layers_of, rewrite

ENDLESS = r"(([\w.]+)+)+_"
NAMES = (
    "transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q", "transformer_blocks.10.attn.to_q",
    "single_transformer_blocks.0.attn.to_q", "single_transformer_blocks.3.proj_out", "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff_context.net.2", "proj_out",
)  # fmt: skip


@pytest.mark.parametrize(
    "patterns",
    [
        ["to_q"],
        ["transformer_blocks.0.attn.to_q", "to_q"],
        ["to_q", "transformer_blocks.0.attn.to_q"],
        [r"^single_transformer_blocks\.\d+\.attn\.to_q", "to_q"],
        [r"transformer_blocks\.[01]\.attn\.to_(q|k)", "proj_out"],
        [r"^transformer_blocks.*to_q", r"(?:ff|ff_context)\.net\.2$", "o_q"],
        ["proj_out|to_q", "net.0.proj"],
        [r"ff.*"],
        ["_q", "q", "", "."],
    ],
)
def test_they_match_what_pefts_do(patterns: list[str]) -> None:
    values = Patterns({pattern: place for place, pattern in enumerate(patterns)})
    for name in NAMES:
        theirs = get_pattern_key(patterns, name)
        assert values.get(name, -1) == (patterns.index(theirs) if theirs in patterns else -1), name


@pytest.mark.parametrize(
    "pattern",
    [ENDLESS, "(a*)*b", "(a|a)+b", r"(\w|_)*_", "a*" * 8 + "b", "(x+x+)+y", r"(.+)\1+", "(?=(a+))*b", "a" * 201],
)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_whose_time_is_not_bounded_is_rejected(
    model: Components, tmp_path: Path, pattern: str, field: str
) -> None:
    # The name has no "." before the pattern, so Python's regular expressions would try every split of it.
    config = {"transformer.r": 4, "transformer.lora_alpha": 4, f"transformer.{field}": {f"{pattern}!": 4}}
    rewrite(tmp_path / "a.safetensors", layers_of(PREFIXED), json.dumps(config))
    with pytest.raises(AdapterError, match="could take too long to match; write the names of the modules"):
        read_foreign(tmp_path / "a.safetensors", lora_targets(model.transformer))


def test_many_names_take_no_longer_than_one_and_many_expressions_are_rejected() -> None:
    names = {f"transformer_blocks.{i}.attn.to_q": i for i in range(100_000)}
    assert Patterns(names).get("transformer_blocks.99999.attn.to_q", -1) == 99_999
    with pytest.raises(AdapterError, match="could take too long"):
        Patterns({rf"\d{i}": i for i in range(65)})
