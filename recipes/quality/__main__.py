"""Measure step reuse on a model, and choose the tolerances of its qualities: ``quality.json`` beside the model.

Every prompt is drawn exactly and at each tolerance of ``TOLERANCES``, at the model's default steps and at 50, at its
default size and guidance. *Closeness* is the median PSNR of the pictures to the exact ones; *rows* are the computed rows of
forwards, as a share of all. A quality gets the largest tolerance that is as close as ``--balanced-db`` or ``--fast-db`` at
both.

Beside them, two simpler ways are measured: unconditional rows in every second step only, and guidance at some of the noise
levels only (Kynkäänniemi et al. 2024, arXiv:2404.07724).

For the embedded model, the prompts are those of ``recipes.embedded.evaluate``, and the share of right pictures at each
quality is measured on all of them, too. ``make quality`` runs it on that model, and draws ``docs/quality.png``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from longcat.model import flavour
from longcat.model.loading import Components, load
from longcat.model.shape import image_tokens
from longcat.sampling import flow
from longcat.sampling.quality import Tolerances
from longcat.sampling.reuse import Reuse
from recipes.embedded import concepts
from recipes.embedded.evaluate import PROMPTS, EvaluationCase, PictureSampler, draw_cases, judge, summarise
from recipes.embedded.vae import load_sprites
from recipes.turbo.evaluate import psnr

TOLERANCES = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4)
MANY_STEPS = 50
Curve = Mapping[str, Mapping[str, float]]
"""Rows and closeness, by the tolerance or the way."""


@dataclass(frozen=True, eq=False)
class UnconditionalAt(Reuse):
    """Compute the unconditional row at some noise levels only."""

    levels: frozenset[float] = frozenset()
    is_held: bool = True
    """True: the direction of guidance is held elsewhere; False: there is no guidance."""

    def rows(self, sigma: float) -> int:
        """Return 2 at the noise levels."""
        return 2 if sigma in self.levels else 1

    def filled(self, sigma: float, computed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the conditional velocity twice where there is no guidance."""
        return super().filled(sigma, computed) if self.is_held else (computed[0], computed[-1])


def main() -> None:
    """Measure, choose, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="flavour or directory to measure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=Path, help="a prompt on each line; the embedded model has its own")
    parser.add_argument("--count", type=int, default=20, help="prompts to compare")
    parser.add_argument("--balanced-db", type=float, default=40.0, help="least median PSNR of balanced")
    parser.add_argument("--fast-db", type=float, default=33.0, help="least median PSNR of fast")
    parser.add_argument(
        "--build", type=Path, default=Path("build/embedded"), help="folder of the embedded model's data"
    )
    parser.add_argument("--output", type=Path, help="by default quality.json in the model's directory")
    parser.add_argument("--figure", type=Path, help="file of the curve")
    arguments = parser.parse_args()
    model = load(flavour.resolve(arguments.model), device=arguments.device)
    is_embedded = model.flavour.folder == flavour.EMBEDDED_FOLDER
    if arguments.prompts is not None:
        prompts = arguments.prompts.read_text(encoding="utf-8").split("\n")
    elif is_embedded:
        prompts = [case.prompt for case in _cases(arguments.build)]
    else:
        parser.error("give --prompts")
    compared = [prompt for prompt in prompts if prompt.strip()][: arguments.count]
    curves = {
        steps: measure(_sampler(model, steps), compared)
        for steps in (model.flavour.settings.default_steps, MANY_STEPS)
    }  # fmt: skip
    balanced, fast = choose(curves, arguments.balanced_db), choose(curves, arguments.fast_db)
    measured: dict[str, Any] = {
        "prompts": len(compared),
        "least_psnr_db": {"balanced": arguments.balanced_db, "fast": arguments.fast_db},
        "at_steps": curves,
    }
    if is_embedded:
        qualities = {"exact": 0.0, "balanced": balanced, "fast": fast}
        measured["right"] = {name: right(model, tolerance, arguments.build) for name, tolerance in qualities.items()}
    tolerances = Tolerances(balanced=balanced, fast=fast, measured=measured)
    output = arguments.output or model.flavour.folder / flavour.QUALITY_FILE
    output.write_text(tolerances.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if arguments.figure is not None:
        figure(curves, tolerances).savefig(arguments.figure)
    print(tolerances.model_dump_json(indent=1))


def measure(sampler: PictureSampler, prompts: Sequence[str]) -> Curve:
    """Return the rows and the closeness at each tolerance, and of the simpler ways."""
    seeds, weight = range(len(prompts)), sampler.guidance_scale - 1
    exact, all_rows = sampler.drawn(prompts, seeds)
    side = sampler.model.flavour.settings.default_size_px
    sigmas = flow.sigma_schedule(
        steps=sampler.steps,
        image_tokens=image_tokens(height_px=side, width_px=side),
        scheduler_config=sampler.model.scheduler_config,
    )
    levels, eighth = sigmas[:-1].tolist(), sampler.steps // 8
    ways: dict[str, Reuse] = {
        **{str(tolerance): Reuse(tolerance, weight) for tolerance in TOLERANCES},
        "every second unconditional row": UnconditionalAt(0.0, weight, levels=frozenset(levels[::2])),
        "guidance in the middle three quarters": UnconditionalAt(
            0.0, weight, levels=frozenset(levels[eighth:-eighth]), is_held=False
        ),
    }
    curve = {}
    for name, reuse in ways.items():
        pictures, rows = replace(sampler, reuse=reuse).drawn(prompts, seeds)
        curve[name] = {"rows": round(rows / all_rows, 3), "psnr_db": psnr(pictures, exact)}
        print(f"{sampler.steps} steps, {name}: {json.dumps(curve[name])}", flush=True)
    return curve


def choose(curves: Mapping[int, Curve], least_db: float) -> float:
    """Return the largest measured tolerance at which pictures are close enough at all numbers of steps."""
    fitting = [t for t in TOLERANCES if all(curve[str(t)]["psnr_db"] >= least_db for curve in curves.values())]
    if not fitting:
        raise SystemExit(f"no tolerance reaches {least_db} dB: give a lower one")
    return max(fitting)


def right(model: Components, tolerance: float, build: Path) -> dict[str, float]:
    """Return the share of the embedded model's right pictures at its defaults."""
    sampler = _sampler(model, model.flavour.settings.default_steps)
    sampler = replace(sampler, reuse=Reuse(tolerance, sampler.guidance_scale - 1) if tolerance else None)
    cases = _cases(build)
    pictures = sampler.draw([case.prompt for case in cases], range(PROMPTS))
    return summarise(cases, judge(cases, pictures, load_sprites(build)))["all"]


def figure(curves: Mapping[int, Curve], tolerances: Tolerances) -> Figure:
    """Return the curves of closeness over the speed-up of the steps, with the qualities marked."""
    drawn = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = drawn.subplots()
    for steps, curve in curves.items():
        points = {t: (1 / curve[str(t)]["rows"], curve[str(t)]["psnr_db"]) for t in TOLERANCES}
        axes.plot(*zip(*points.values(), strict=True), marker="o", label=f"{steps} steps")
        for name, tolerance in (("balanced", tolerances.balanced), ("fast", tolerances.fast)):
            axes.annotate(name, points[tolerance], textcoords="offset points", xytext=(6, 6))
    axes.set_xlabel("rows of all, divided by computed rows")
    axes.set_ylabel("median PSNR to exact pictures (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn


def _sampler(model: Components, steps: int) -> PictureSampler:
    return PictureSampler(model=model, steps=steps, guidance_scale=model.flavour.settings.default_guidance_scale)


def _cases(build: Path) -> list[EvaluationCase]:
    if not (build / "concepts.json").exists():
        build.mkdir(parents=True, exist_ok=True)
        concepts.prepare(build)
    return draw_cases(concepts.load(build)[0])


if __name__ == "__main__":
    main()
