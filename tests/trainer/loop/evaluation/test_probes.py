"""Probes of held-out pictures: languages in turn, every band of noise levels, independent of other pictures."""

from collections import Counter
from pathlib import Path

from tests.trainer.data.scans import config, look, picture
from trainer.data.sample import Sample
from trainer.loop.evaluation.probes import probes_of


def samples(folder: Path, count: int, **given: object) -> tuple[Sample, ...]:
    for i in range(count):
        picture(folder / f"{i}.png", "一只猫" if i % 4 == 0 else "a cat")
    return look(config(folder, dataset_type="eval", **given), allow_empty=True).held_out


def test_languages_alternate_and_every_band_has_its_part(tmp_path: Path) -> None:
    probes = probes_of(samples(tmp_path / "set", 40), most=16)
    assert Counter(probe.language for probe in probes) == {"zh": 8, "en": 8}
    for language in ("zh", "en"):
        bands = [probe.band for probe in probes if probe.language == language]
        assert Counter(bands) == dict.fromkeys(range(4), 2)
        assert sorted(bands[:4]) == [0, 1, 2, 3], "the first few, which the sweep takes, have one in each"


def test_few_captions_have_several_noise_levels(tmp_path: Path) -> None:
    probes = probes_of(samples(tmp_path / "set", 2), most=16)
    assert len(probes) == 16
    assert len({(probe.caption, probe.quantile) for probe in probes}) == 16
    assert probes_of((), most=16) == ()


def test_a_picture_with_captions_in_both_languages_has_probes_in_both(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "0.png", "a cat\n一只猫")
    held_out = look(config(tmp_path / "set", dataset_type="eval", trigger_words=["tok"]), allow_empty=True).held_out
    captions = {probe.language: probe.caption for probe in probes_of(held_out, most=16)}
    assert captions == {"en": "tok, a cat", "zh": "tok，一只猫"}


def test_probes_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    held_out = samples(tmp_path / "set", 12)
    assert probes_of(held_out[::-1], most=8) == probes_of(held_out, most=8)
