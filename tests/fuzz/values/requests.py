"""Requests for pictures, with fields that are likely or strange."""

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.values.strange import (
    INTEGERS,
    NUMBERS,
    TEXTS,
    changed,
    one_of_these,
)

NAMES = st.one_of(
    one_of_these(["ink", "ink@1", "ink@", "@", "../../etc/passwd", "embedded", "a" * 300, "ink\n"]), TEXTS
)
LONG_PROMPTS = (
    '"' + "a" * 61_000 + '"', "\"' " + "a'" * 25_000, "“" * 20_000, "“猫" * 10_000, "猫" * 20_000, "a " * 30_000,
    "\\" * 30_000, "'" * 60_000,
    "\u200d" * 20_000, "😀" * 15_000, "<|endoftext|>" * 4_000, "1" * 60_000, "\n" * 60_000, "é" * 30_000, "a\u0301" * 20_000,
)  # fmt: skip
LONG_LISTS: tuple[Any, ...] = (
    [1] * 30_000, [{}] * 20_000, [{"name": "ink"}] * 3_000, {str(n): 1 for n in range(5_000)}, [[[]]] * 9_000,
    [{"name": "x" * 60_000}],
)  # fmt: skip
SMALL = {"prompt": "a cat", "steps": 1}
PROMPTS = st.one_of(TEXTS, one_of_these(LONG_PROMPTS))
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "prompt": PROMPTS,
    "negative_prompt": PROMPTS,
    "width": st.one_of(one_of_these([64, 100, 128, 2**20, 0]), INTEGERS),
    "height": one_of_these([64, 128.0, "64", -64]),
    "size": one_of_these(["64x64", "64×64", "0x0", "99999x99999", "auto", "x", "64x64x64", "9" * 5_000 + "x64"]),
    "steps": st.one_of(one_of_these([1, 0, 101, 10**9, 1.0]), INTEGERS),
    "guidance_scale": st.one_of(one_of_these([0, 1, 30, 31, "4"]), NUMBERS),
    "seed": st.one_of(one_of_these([0, 2**63 - 1, 2**63, -1, 1.5]), INTEGERS),
    "num_images": one_of_these([1, 2, 0, 10**6]),
    "n": one_of_these([1, 2, 0, 10**6]),
    "cfg_renorm": st.booleans(),
    "rewrite_prompt": st.booleans(),
    "adapters": st.one_of(
        st.lists(st.fixed_dictionaries({"name": NAMES}, optional={"scale": NUMBERS}), max_size=5),
        one_of_these(LONG_LISTS),
    ),
    "model": NAMES,
    "stream": st.booleans(),
    "previews": st.booleans(),
    "partial_images": st.integers(-1, 4),
    "async": st.booleans(),
    "webhook_url": one_of_these(
        ["http://127.0.0.1/x", "http://[", "file:///etc/passwd", "http://a:b@c/", " http://a/", "http://" + "a" * 9_000]
    ),
    "timeout_seconds": st.one_of(one_of_these([0, 0.001, 5, 1e9, 1e300]), NUMBERS),
    "output_format": one_of_these(["png", "jpeg", "webp", "gif"]),
    "response_format": one_of_these(["binary", "json", "b64_json", "url"]),
    "background": one_of_these(["auto", "transparent"]),
    "user": TEXTS,
}
_OURS = {"width", "height", "num_images", "previews", "async", "webhook_url"}
_OPENAIS = {"size", "n", "model", "partial_images", "background", "user"}


def likely_fields(endpoint: str) -> dict[str, st.SearchStrategy[Any]]:
    """Return the likely values of an endpoint's fields."""
    foreign = _OURS if endpoint.startswith("/v1/") else _OPENAIS
    return {name: values for name, values in LIKELY.items() if name not in foreign}


def bodies(endpoint: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return a request for a small picture with a few wrong fields, likely or strange."""
    size = {} if endpoint.startswith("/v1/") else {"width": 64, "height": 64}
    return changed(SMALL | size, likely_fields(endpoint))
