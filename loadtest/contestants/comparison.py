"""Rounds of load on every server in turn, and the comparison of the service with each baseline."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from loadtest.servers import ServerProcess
from loadtest.traffic.figures import medians, ratios, table
from loadtest.traffic.traffic import Result

OURS = "lithograph"

Results = Mapping[str, Sequence[Result]]
"""Results by server, one for each round."""


def interleave(
    servers: Mapping[str, ServerProcess], loads: Sequence[Callable[[ServerProcess], Result]]
) -> dict[str, list[Result]]:
    """Run one load in each round on every server in turn: A B C A B C."""
    results: dict[str, list[Result]] = {name: [] for name in servers}
    for number, load in enumerate(loads, start=1):
        for name, server in servers.items():
            result = load(server)
            results[name].append(result)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in result.figures().items())
            print(f"round {number} of {len(loads)}, {name}: {shown}", file=sys.stderr, flush=True)
    return results


def compare(results: Results) -> tuple[dict[str, Any], list[str]]:
    """Compute results by server and round, ratios to the service and differences of pictures; print them as tables."""
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
    """Return every request that failed."""
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
    """Compare the pictures of equal requests, in steps of 255; ``over_1`` is a share of all values."""
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
