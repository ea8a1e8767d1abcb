"""Rounds: every server in turn under the same load, the product held against each baseline."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from loadtest.figures import medians, ratios, table
from loadtest.servers import Server
from loadtest.traffic import Result

OURS = "lithograph"

Results = Mapping[str, Sequence[Result]]
"""By server, a result a round."""


def interleave(servers: Mapping[str, Server], loads: Sequence[Callable[[Server], Result]]) -> dict[str, list[Result]]:
    """One load a round; in each round, every server in turn: A B C A B C."""
    results: dict[str, list[Result]] = {name: [] for name in servers}
    for number, load in enumerate(loads, start=1):
        for name, server in servers.items():
            result = load(server)
            results[name].append(result)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in result.figures().items())
            print(f"round {number} of {len(loads)}, {name}: {shown}", file=sys.stderr, flush=True)
    return results


def compare(results: Results) -> tuple[dict[str, Any], list[str]]:
    """Figures by server and round, ratios to the product, pictures compared; and all that as tables."""
    rounds = {name: [result.figures() for result in given] for name, given in results.items()}
    content: dict[str, Any] = {
        "servers": {name: {"median": medians(figures), "rounds": figures} for name, figures in rounds.items()},
        "failed": failures(results),
    }
    tables = [table({name: medians(figures) for name, figures in rounds.items()})]
    others = [name for name in results if name != OURS]
    if OURS in results and others:
        against = {f"{OURS} / {name}": ratios(rounds[OURS], rounds[name]) for name in others}
        content["ratios"] = {pair: {"median": medians(given), "rounds": given} for pair, given in against.items()}
        content["pictures"] = {f"{OURS} - {name}": differences(results[OURS], results[name]) for name in others}
        tables.append(table({pair: medians(given) for pair, given in against.items()}))
        tables.append(table(content["pictures"]))
    return content, tables


def failures(results: Results) -> list[dict[str, Any]]:
    """Every request that got no picture."""
    return [
        {
            "server": name,
            "drawing": drawing.body(),
            "reply": reply.problem,
        }
        for name, given in results.items()
        for result in given
        for drawing, reply in result.failed
    ]


def differences(ours: Sequence[Result], theirs: Sequence[Result]) -> dict[str, float]:
    """How far the pictures of equal requests are from each other, in steps of 255; ``over_1`` is a share of all values."""
    pairs = [
        (_pixels(picture), _pixels(other.pictures[drawing]))
        for result, other in zip(ours, theirs, strict=True)
        for drawing, picture in result.pictures.items()
        if drawing in other.pictures
    ]
    gaps = [np.abs(ours - theirs) for ours, theirs in pairs]
    if not gaps:
        return {"compared": 0}
    return {
        "compared": len(gaps),
        "largest": float(max(gap.max() for gap in gaps)),
        "mean": float(np.mean([gap.mean() for gap in gaps])),
        "over_1": float(np.mean([(gap > 1).mean() for gap in gaps])),
        "over_1_worst_picture": float(max((gap > 1).mean() for gap in gaps)),
    }


def _pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)
