"""Qualities of requests: their tolerances, OpenAI's names for them, and recipes from before there were any."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from longcat.errors import FlavourError
from longcat.model.flavour import QUALITY_FILE, SIZES_FILE, Flavour
from longcat.sampling.quality import Tolerances, sizes_of, tolerances_of
from service.http.compat.openai_schema import ImagesRequest, answered_quality
from service.wire.limits import Limits
from service.wire.schema import GenerateRequest, ResolvedRequest


def resolved(flavour: Flavour, **fields: object) -> ResolvedRequest:
    request = GenerateRequest.model_validate({"prompt": "a cat", **fields})
    return Limits.of_model(flavour).resolve(request, lambda text: [0] * len(text))


def test_a_quality_is_the_models_tolerance(flavour: Flavour) -> None:
    given = {quality: resolved(flavour, quality=quality).reuse_tolerance for quality in ("exact", "balanced", "fast")}
    tolerances = tolerances_of(flavour.folder)
    assert given == {"exact": 0.0, "balanced": tolerances.balanced, "fast": tolerances.fast}
    assert 0 < given["balanced"] < given["fast"]
    plain = resolved(flavour)
    assert (plain.quality, plain.reuse_tolerance) == ("exact", 0.0)


def test_a_tolerance_of_the_request_is_used(flavour: Flavour) -> None:
    alone = resolved(flavour, reuse_tolerance=0.07)
    assert (alone.quality, alone.reuse_tolerance) == (None, 0.07)
    named = resolved(flavour, reuse_tolerance=0.07, quality="fast")
    assert (named.quality, named.reuse_tolerance) == ("fast", 0.07)


@pytest.mark.parametrize(
    ("field", "value"), [("quality", "best"), ("quality", 1), ("reuse_tolerance", -0.1), ("reuse_tolerance", 1.1)]
)
def test_other_values_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        GenerateRequest.model_validate({"prompt": "a cat", field: value})


@pytest.mark.parametrize(
    ("sent", "meant", "answered"),
    [
        (None, "exact", "high"), ("auto", "exact", "high"), ("standard", "exact", "high"), ("hd", "exact", "high"),
        ("high", "exact", "high"), ("medium", "balanced", "medium"), ("low", "fast", "low"), ("fast", "fast", "low"),
    ],
)  # fmt: skip
def test_openais_qualities(flavour: Flavour, sent: str | None, meant: str, answered: str) -> None:
    body = ImagesRequest.model_validate({"prompt": "a cat", "quality": sent})
    request = Limits.of_model(flavour).resolve(body.as_generate("embedded"), lambda text: [0] * len(text))
    assert (request.quality, answered_quality(request.quality)) == (meant, answered)


def test_a_recipe_without_a_quality_is_exact(flavour: Flavour) -> None:
    fields = resolved(flavour).model_dump(exclude={"quality", "reuse_tolerance"})
    recipe = ResolvedRequest.model_validate(fields)
    assert (recipe.quality, recipe.reuse_tolerance) == ("exact", 0.0)


def test_a_models_file_gives_its_tolerances(tmp_path: Path) -> None:
    assert tolerances_of(tmp_path) == Tolerances()
    (tmp_path / QUALITY_FILE).write_text('{"balanced": 0.05, "fast": 0.4}')
    assert tolerances_of(tmp_path).fast == 0.4
    (tmp_path / QUALITY_FILE).write_text('{"balanced": 5}')
    with pytest.raises(FlavourError, match=r"quality\.json is invalid: balanced"):
        tolerances_of(tmp_path)


def test_a_models_file_gives_the_sizes_at_which_it_draws_well(tmp_path: Path) -> None:
    assert sizes_of(tmp_path) is None
    shares = [(128, 192, 0.95, 1.0), (192, 192, 0.5, 1.0), (64, 64, 1.0, 0.2)]
    results = [{"width": w, "height": h, "thing": thing, "background": back} for w, h, thing, back in shares]
    (tmp_path / SIZES_FILE).write_text(json.dumps({"prompts": 20, "results": results}))
    assert sizes_of(tmp_path) == ((128, 192),)
    (tmp_path / SIZES_FILE).write_text(json.dumps({"prompts": 20, "results": results[1:]}))
    assert sizes_of(tmp_path) == ()
    (tmp_path / SIZES_FILE).write_text('{"results": [{"width": "wide"}]}')
    with pytest.raises(FlavourError, match=r"sizes\.json is invalid: results"):
        sizes_of(tmp_path)
