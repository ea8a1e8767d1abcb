"""The prompts of the turbo adapter: captions of every concept, as the embedded model was trained on them.

Templates and backgrounds that were held out for a concept are left out here too, so that the evaluation's prompts are new to
the adapter as well.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from recipes.embedded import concepts
from recipes.embedded.captions import LANGUAGES, training_backgrounds, training_caption

SEED = 4001
ROUNDS = 4
"""Captions of a concept: two in each language."""
_WHITE = 0.4
"""Share of captions on white, as in the model's own training."""


def write_prompts(build: Path, path: Path) -> None:
    """Write a caption on each line. ``build``: folder with the embedded model's concepts, which are fetched if missing."""
    if not (build / "concepts.json").exists():
        build.mkdir(parents=True, exist_ok=True)
        concepts.prepare(build)
    everything, _ = concepts.load(build)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_captions(everything)) + "\n", encoding="utf-8")


def _captions(everything: list[concepts.Concept]) -> Iterator[str]:
    rng = random.Random(SEED)
    for turn in range(ROUNDS):
        for index, concept in enumerate(everything):
            background = 0 if rng.random() < _WHITE else rng.choice(training_backgrounds(index))
            language = LANGUAGES[(index + turn) % len(LANGUAGES)]
            yield training_caption(concept, index, background, language, rng)
