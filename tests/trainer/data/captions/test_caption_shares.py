"""Several captions of a picture, from several files or columns, chosen by share."""

import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.trainer.data.scans import codes, config, look, picture, warnings
from trainer.data.captions.compose import compose_caption, possible_captions
from trainer.data.report import describe, report
from trainer.data.sample import Sample
from trainer.data.scanning.options import PromptLimit
from trainer.randomness import python_rng

DRAWS = 3000


def drawn(sample: Sample, seed: int = 1) -> Counter[str]:
    """Return the captions chosen for a picture that is in every batch of a long run."""
    return Counter(compose_caption(sample, python_rng(seed, "caption", number, 0)) for number in range(DRAWS))


def bilingual(folder: Path, count: int = 2) -> None:
    for number in range(count):
        picture(folder / f"{number}.png", None)
        (folder / f"{number}.zh.txt").write_text("一只猫\n一只白猫", encoding="utf-8")
        (folder / f"{number}.en.txt").write_text("a cat", encoding="utf-8")


ENDINGS = {"caption_endings": [".zh.txt", ".en.txt"]}


@pytest.mark.parametrize("shares", [{"zh": 3, "en": 7}, {".zh.txt": 0.3, ".en.txt": 0.7}])
def test_what_is_shown_follows_the_shares(tmp_path: Path, shares: dict[str, float]) -> None:
    bilingual(tmp_path)
    found = look(config(tmp_path, **ENDINGS, caption_shares=shares))
    one = found.samples[0]
    assert one.captions == ("一只猫", "一只白猫", "a cat")
    assert set(possible_captions(one)) == set(one.captions)
    counts = drawn(one)
    for caption, share in {"一只猫": 0.15, "一只白猫": 0.15, "a cat": 0.7}.items():
        spread = (DRAWS * share * (1 - share)) ** 0.5
        assert abs(counts[caption] - DRAWS * share) < 4 * spread, counts
    assert drawn(one) == counts
    assert drawn(one, seed=2) != counts
    assert found.hash != look(config(tmp_path, **ENDINGS, caption_shares={"zh": 1, "en": 1})).hash


def test_the_report_counts_each_kind(tmp_path: Path) -> None:
    bilingual(tmp_path, 3)
    (tmp_path / "2.en.txt").unlink()
    found = look(config(tmp_path, **ENDINGS, caption_shares={"zh": 1, "en": 3}))
    (entry,) = report(found)["datasets"]
    assert entry["caption_shares"] == {
        "zh": {"share": 0.25, "captions": 6, "pictures": 3}, "en": {"share": 0.75, "captions": 2, "pictures": 2},
    }  # fmt: skip
    assert "captions by share in pictures: zh 25% (6 of 3 pictures), en 75% (2 of 2 pictures)" in describe(found)
    assert json.dumps(report(found))
    # A picture without one kind only uses the others.
    assert {compose_caption(found.samples[2], python_rng(n)) for n in range(50)} == {"一只猫", "一只白猫"}
    assert report(look(config(tmp_path, **ENDINGS)))["datasets"][0]["caption_shares"] == {}


def test_files_of_two_languages_are_read_as_they_stand(tmp_path: Path) -> None:
    bilingual(tmp_path)
    (tmp_path / "1.txt").write_text("its own")
    found = look(config(tmp_path))
    assert [sample.captions for sample in found.samples] == [("一只猫", "一只白猫", "a cat"), ("its own",)]
    shared = look(config(tmp_path, caption_shares={"zh": 1, "en": 1}))
    assert shared.samples[0].kinds == ("zh", "zh", "en")


def test_captions_without_a_share_are_not_used(tmp_path: Path) -> None:
    bilingual(tmp_path)
    (tmp_path / "1.zh.txt").unlink()
    found = look(config(tmp_path, **ENDINGS, caption_shares={"zh": 1, "en": 0}))
    assert [sample.captions for sample in found.samples] == [("一只猫", "一只白猫")]
    assert codes(found) == {"1.png": "caption_without_share"}
    assert "1 captions are not used" in warnings(found)["captions_without_share"]


TABLES = {
    "csv": "filename,caption_zh,caption_en\n0.png,一只猫,a cat\n1.png,,a dog\n",
    "jsonl": '{"filename": "0.png", "caption_zh": "一只猫", "caption_en": "a cat"}\n'
    '{"filename": "1.png", "caption_en": ["a dog"]}\n',
    "json": '{"0.png": {"caption_zh": "一只猫", "caption_en": "a cat"}, "1.png": {"caption_en": "a dog"}}',
}


@pytest.mark.parametrize("kind", TABLES)
def test_columns_have_shares(tmp_path: Path, kind: str) -> None:
    for number in range(2):
        picture(tmp_path / f"{number}.png", None)
    (tmp_path / f"all.{kind}").write_text(TABLES[kind], encoding="utf-8")
    columns = {"caption_strategy": kind, "caption_file": f"all.{kind}", "caption_column": ["caption_zh", "caption_en"]}
    found = look(config(tmp_path, **columns, caption_shares={"caption_zh": 1, "caption_en": 3}))
    assert [sample.captions for sample in found.samples] == [("一只猫", "a cat"), ("a dog",)]
    assert found.samples[0].kinds == ("caption_zh", "caption_en")
    counts = drawn(found.samples[0])
    assert abs(counts["a cat"] / DRAWS - 0.75) < 0.04
    unshared = look(config(tmp_path, **columns))
    assert [sample.captions for sample in unshared.samples] == [("一只猫", "a cat"), ("a dog",)]


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "0.png", None)
    (tmp_path / "all.csv").write_text("filename,zh\n0.png,一只猫\n", encoding="utf-8")
    with pytest.raises(Exception, match="no column 'en' among its columns filename, zh"):
        look(config(tmp_path, caption_strategy="csv", caption_column=["zh", "en"]))


def test_a_caption_that_is_too_long_leaves_its_share_to_its_kind(tmp_path: Path) -> None:
    bilingual(tmp_path, 1)
    limit = PromptLimit(max_tokens=5, count=len)
    (tmp_path / "0.zh.txt").write_text("一只猫\n一只很大的白猫", encoding="utf-8")
    found = look(config(tmp_path, **ENDINGS, caption_shares={"zh": 1, "en": 1}), prompt_limit=lambda: limit)
    assert (found.samples[0].captions, found.samples[0].kinds) == (("一只猫", "a cat"), ("zh", "en"))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"caption_shares": {"cn": 1}}, "caption_shares_unknown"),
        ({"caption_shares": {"zh": 1, ".en.txt": 1}, **ENDINGS}, "caption_shares_unknown"),
        ({"caption_shares": {"zh": 0}}, "caption_shares_zero"),
        ({"caption_shares": {"zh": 1}, "caption_strategy": "filename"}, "caption_shares_of_one"),
    ],
)
def test_shares_that_fit_nothing_are_refused(tmp_path: Path, given: dict[str, object], code: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(tmp_path, **given)
    (error,) = caught.value.errors()
    assert error["ctx"]["error"].problem.code == code
