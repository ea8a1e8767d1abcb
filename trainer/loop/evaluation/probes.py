"""Probes: held-out pictures with a caption and a noise level, chosen by their content alone. No torch.

Noise levels are spread over the distribution of the training's, as quantiles in van der Corput's order: the first few
probes of a language have one in each band already.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.captions.compose import with_trigger_words
from trainer.data.captions.language import detect_language
from trainer.data.held_out import in_order
from trainer.data.sample import Sample
from trainer.record.report_card import BANDS, Language

_LEAST = 16
"""Fewest probes: with fewer captions, each has several noise levels."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A held-out picture with a caption and a noise level."""

    sample: Sample
    caption: str
    language: Language
    quantile: float
    """Share of the training's noise levels that are lower."""

    @property
    def band(self) -> int:
        """Band of the noise level, 0 for the lowest."""
        return int(self.quantile * BANDS)


def probes_of(held_out: Sequence[Sample], *, most: int) -> tuple[Probe, ...]:
    """Return the probes of held-out pictures: of up to ``most`` captions, the languages in turn."""
    by_language: dict[Language, list[tuple[Sample, str]]] = {"zh": [], "en": [], "other": []}
    for sample in in_order(tuple(held_out)):
        for caption in dict.fromkeys(with_trigger_words(text, sample.config.trigger_words) for text in sample.captions):
            by_language[detect_language(caption)].append((sample, caption))
    turns = itertools.zip_longest(*([(language, *one) for one in ones] for language, ones in by_language.items()))
    chosen = [one for turn in turns for one in turn if one is not None][:most]
    count = max(_LEAST, len(chosen)) if chosen else 0
    repeated = list(itertools.islice(itertools.cycle(chosen), count))
    bits = max(2, (count - 1).bit_length())
    places = {language: itertools.count() for language in by_language}
    return tuple(
        Probe(sample=sample, caption=caption, language=language, quantile=_quantile(next(places[language]), bits))
        for language, sample, caption in repeated
    )


def _quantile(place: int, bits: int) -> float:
    """Return a place's van der Corput number, moved to the middle of its interval: 1/8, 5/8, 3/8, 7/8 for two bits."""
    return (int(f"{place:0{bits}b}"[::-1], 2) + 0.5) / (1 << bits)
