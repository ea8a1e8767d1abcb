"""Edits and text-to-image in one batch, beside the two kinds taking turns, on one server.

As many clients inpaint a picture as generate one from text, all with the same steps and guidance. Mixed: all at once, so
that the rows of both kinds share forwards. In turns: first the ones, then the others. Rounds are interleaved; both ways give
the same files, which are compared byte by byte. Exit code 1 if a request failed or a file differs.
"""

import argparse
import base64
import io
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from typing_extensions import override

from loadtest.servers import ServerProcess, running, service
from loadtest.traffic.figures import Figures, machine, medians, ratios, report, table
from loadtest.traffic.requests import ImageRequest, prompts
from loadtest.traffic.traffic import Mix, Result, closed_loop

_MIXED, _TURNS = "mixed", "in turns"
Work = Sequence[Sequence[ImageRequest]]


@dataclass(frozen=True, kw_only=True)
class InpaintingRequest(ImageRequest):
    """One request that changes the lower half of a picture."""

    image: str
    """A file in base64, as the mask."""
    mask: str

    @override
    def body(self) -> dict[str, Any]:
        return super().body() | {"image": self.image, "mask": self.mask}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--clients", type=int, default=4, help="of each kind")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=2, help="a client and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    about, texts, mix = machine(), prompts(arguments.seed), Mix(steps=(arguments.steps,))
    results: dict[str, list[Result]] = {_MIXED: [], _TURNS: []}
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        rows = 4 * arguments.clients  # two of each image, with guidance
        setup = service("lithograph", dtype=arguments.dtype, options=["--max-rows", str(rows)])
        with running([setup], Path(scratch)) as servers:
            (server,) = servers.values()
            picture = _picture(server, mix.drawing(next(texts), seed=0, steps=arguments.steps, adapter=None))
            for number in range(arguments.rounds + 1):
                each = arguments.pictures if number else 1
                work = mix.for_clients(texts, clients=2 * arguments.clients, each=each, seed=arguments.seed + number)
                changed = [[_inpainting(request, picture) for request in own] for own in work[: arguments.clients]]
                kinds = changed, work[arguments.clients :]
                found = {_MIXED: closed_loop(server, [*kinds[0], *kinds[1]]), _TURNS: _in_turns(server, kinds)}
                if number:  # the first is to warm up
                    for way, result in found.items():
                        results[way].append(result)
    figures: dict[str, list[Figures]] = {way: [result.figures() for result in given] for way, given in results.items()}
    compared = ratios(figures[_MIXED], figures[_TURNS])
    failed = sum(len(result.failed) for given in results.values() for result in given)
    differing = sum(
        one.pictures[request] != other.pictures.get(request)
        for one, other in zip(*results.values(), strict=True)
        for request in one.pictures
    )
    content = {
        "measured": "edits and text-to-image in one batch, beside turns",
        "settings": vars(arguments),
        "machine": about,
        "failed": failed,
        "differing_files": differing,
        "figures": figures,
        "ratios": {"median": medians(compared), "rounds": compared},
    }
    tables = [
        table({way: medians(given) for way, given in figures.items()}),
        table({"mixed / in turns": medians(compared)}),
    ]
    report(content, tables)
    sys.exit(bool(failed or differing))


def _in_turns(server: ServerProcess, kinds: Sequence[Work]) -> Result:
    """Run the loads one after the other, and return them as one."""
    parts = [closed_loop(server, work) for work in kinds]
    return Result(
        answered=tuple(answer for part in parts for answer in part.answered),
        wall_seconds=sum(part.wall_seconds for part in parts),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
    )


def _picture(server: ServerProcess, request: ImageRequest) -> bytes:
    """Return a picture to change."""
    ((_, reply),) = closed_loop(server, [[request]]).answered
    return reply.content


def _inpainting(request: ImageRequest, picture: bytes) -> InpaintingRequest:
    mask = Image.new("L", (request.size_px, request.size_px))
    mask.paste(255, (0, request.size_px // 2, request.size_px, request.size_px))
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    fields: dict[str, Any] = {name: getattr(request, name) for name in ImageRequest.__dataclass_fields__}
    return InpaintingRequest(**fields, image=_base64(picture), mask=_base64(buffer.getvalue()))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


if __name__ == "__main__":
    main()
