"""Captions: every encoding and place they come from, their language, trigger words and tags."""

import codecs
import random
from pathlib import Path

import pytest

from longcat.errors import DataError
from trainer.buckets import Bucket, Crop
from trainer.caption_files import CaptionReader, decode_text
from trainer.captions import compose_caption, detect_language, possible_captions, tag_orders, with_trigger_words
from trainer.dataset_config import DatasetConfig
from trainer.inventory import Sample
from trainer.sources import open_source

CHINESE = "一只猫，蓝色背景"


def reader(folder: Path, **given: object) -> CaptionReader:
    config = DatasetConfig.model_validate({"id": "pictures", "instance_data_dir": str(folder), **given})
    source = open_source(config)
    return CaptionReader(config, source, source.list())


def sample(*captions: str, **given: object) -> Sample:
    return Sample(
        dataset="pictures",
        key="cat.png",
        digest="0" * 64,
        captions=captions,
        width_px=64,
        height_px=64,
        bucket=Bucket(width_px=64, height_px=64),
        crop=Crop(resized=(64, 64), box=(0, 0)),
        repeats=0,
        probability=1,
        config=DatasetConfig.model_validate({"id": "pictures", "instance_data_dir": ".", **given}),
    )


@pytest.mark.parametrize(
    ("content", "guessed"),
    [
        (CHINESE.encode(), False),
        (codecs.BOM_UTF8 + CHINESE.encode(), False),
        (CHINESE.encode("utf-16"), False),
        (codecs.BOM_UTF16_BE + CHINESE.encode("utf-16-be"), False),
        (CHINESE.encode("utf-32"), False),
        (CHINESE.encode("gb18030"), True),
        (CHINESE.encode("gbk"), True),
        ((CHINESE + "\r\n\r\n").encode(), False),
        (f"\r\n  {CHINESE}\u3000\r".encode(), False),
    ],
)
def test_a_text_file_in_any_usual_encoding(tmp_path: Path, content: bytes, guessed: bool) -> None:
    (tmp_path / "cat.txt").write_bytes(content)
    captions = reader(tmp_path)
    assert captions.read("cat.png") == (CHINESE,)
    assert bool(captions.guessed) == guessed


@pytest.mark.parametrize("text", ["一只猫", "猫", "a picture of 一只猫", "filename,caption\ncat.png,一只猫"])
def test_chinese_that_could_be_utf_8_is_told_from_it(text: str) -> None:
    content = text.encode("gb18030")
    content.decode("utf-8")  # it can be, and is nonsense
    assert decode_text(content) == (text, True)


@pytest.mark.parametrize(
    "text", ["crème brûlée", "è una mela", "красное яблоко", "μήλο", "תפוח אדום", "×", "50 µm, naïve"]
)
def test_other_scripts_in_utf_8_stay_what_they_are(text: str) -> None:
    assert decode_text(text.encode()) == (text, False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xff\xff", "neither UTF-8 nor GB18030"),
        (b"a\0b", "holds zero bytes"),
        (codecs.BOM_UTF16_LE + b"a", "starts as utf-16"),
    ],
)
def test_what_is_no_text_is_said(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_text(content)


def test_lines_are_alternatives_each_once(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_bytes("a cat\r\n\r\n一只猫\n  \na cat\u2028another".encode())
    assert reader(tmp_path).read("cat.png") == ("a cat", "一只猫", "another")
    assert reader(tmp_path, disable_multiline_split=True).read("cat.png") == ("a cat\n\n一只猫\n  \na cat\nanother",)


def test_names_that_differ_in_case_and_form_belong_together(tmp_path: Path) -> None:
    for name, text in (("CAT.TXT", "upper"), ("cafe\u0301.txt", "apart"), ("dog.png.txt", "whole name")):
        (tmp_path / name).write_text(text)
    captions = reader(tmp_path)
    assert [captions.read(key) for key in ("cat.PNG", "caf\u00e9.png", "dog.png")] == [
        ("upper",), ("apart",), ("whole name",)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no caption: cat.txt is not there"),
        (b"", "has no caption: its caption file has none"),
        (codecs.BOM_UTF8 + b" \r\n\xe3\x80\x80\n", "has no caption: its caption file has none"),
        (b"x" * (2**20 + 1), "1,048,577 bytes, too many"),
        (b"\xff\xff\xff", "cat.txt is neither UTF-8 nor GB18030"),
    ],
)
def test_a_missing_or_empty_caption_has_its_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "cat.txt").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        reader(tmp_path).read("cat.png")


def test_file_names(tmp_path: Path) -> None:
    captions = reader(tmp_path, caption_strategy="filename")
    assert captions.read("a/a_red cat.png") == ("a red cat",)
    assert captions.read("一只猫.png") == ("一只猫",)
    for key in ("0001.png", "__.png"):
        with pytest.raises(DataError, match="its name has none"):
            captions.read(key)
    with pytest.raises(DataError, match="no Unicode text"):
        captions.read("cat\udcff.png")


def test_a_table(tmp_path: Path) -> None:
    rows = [
        "filename,caption",
        'cat.png,"a cat, sitting"',
        ".\\b\\dog.PNG,一只狗",
        "cat.png,一只猫",
        ",x",
        "x.png,a,b",
        "bird.png,",
    ]
    (tmp_path / "all.csv").write_bytes(codecs.BOM_UTF8 + "\r\n".join(rows).encode())
    captions = reader(tmp_path, caption_strategy="csv")
    assert captions.read("cat.png") == ("a cat, sitting", "一只猫")
    assert captions.read("b/dog.png") == ("一只狗",)
    assert captions.read("deep/cat.png") == ("a cat, sitting", "一只猫")
    assert captions.unused() == ["bird.png"]
    assert [where for where, _ in captions.dropped] == ["all.csv line 5", "all.csv line 6"]
    assert "put captions with commas in quotes" in captions.dropped[1][1]
    with pytest.raises(DataError, match=r"all.csv has no row for it"):
        captions.read("fish.png")
    with pytest.raises(DataError, match=r"has no caption: all.csv has none for it"):
        captions.read("bird.png")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_other_columns_delimiters_and_encoding(tmp_path: Path, delimiter: str) -> None:
    text = f"file_name{delimiter}text\ncat.png{delimiter}一只猫\n"
    (tmp_path / "metadata.csv").write_bytes(text.encode("gb18030"))
    with pytest.raises(DataError, match="no column 'filename'; it has file_name, text: say which"):
        reader(tmp_path, caption_strategy="csv")
    captions = reader(tmp_path, caption_strategy="csv", filename_column="file_name", caption_column="text")
    assert captions.read("cat.png") == ("一只猫",)


def test_which_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is none.*name the one in caption_file"):
        reader(tmp_path, caption_strategy="csv")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(f"filename,caption\ncat.png,{name}\n")
    with pytest.raises(DataError, match=r"there are 2 \(a.csv, b.csv\)"):
        reader(tmp_path, caption_strategy="csv")
    assert reader(tmp_path, caption_strategy="csv", caption_file="b.csv").read("cat.png") == ("b.csv",)
    with pytest.raises(DataError, match=r"caption_file c.csv is not there"):
        reader(tmp_path, caption_strategy="csv", caption_file="c.csv")


def test_a_name_that_could_be_several_pictures_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("filename,caption\ncat.png,a cat\n")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cat.png").touch()
    with pytest.raises(DataError, match="of which there are 2; give their directories too"):
        reader(tmp_path, caption_strategy="csv").read("a/cat.png")


def test_json_lines_and_those_that_are_wrong(tmp_path: Path) -> None:
    lines = [
        '{"filename": "cat.png", "caption": ["a cat", "一只猫"]}', "", "{broken", '["cat.png"]', '{"filename": "x.png"}',
        '{"filename": "y.png", "caption": [1]}', '{"filename": "z.png", "caption": "\\ud800"}',
    ]  # fmt: skip
    (tmp_path / "all.jsonl").write_bytes("\r\n".join(lines).encode())
    captions = reader(tmp_path, caption_strategy="jsonl")
    assert captions.read("cat.png") == ("a cat", "一只猫")
    assert [where.rpartition(" ")[2] for where, _ in captions.dropped] == ["3", "4", "5", "6"]
    reasons = [reason for _, reason in captions.dropped]
    for reason, said in zip(reasons, ("is not JSON", "filename_column", "caption_column", "'1' for a"), strict=True):
        assert said in reason
    with pytest.raises(DataError, match="no Unicode text"):
        captions.read("z.png")


def test_json_beside_pictures_or_as_one_file(tmp_path: Path) -> None:
    (tmp_path / "cat.json").write_text('{"caption": "a cat"}')
    (tmp_path / "dog.json").write_text('["a dog", "一只狗"]')
    (tmp_path / "bad.json").write_text("[" * 100_000)
    captions = reader(tmp_path, caption_strategy="json")
    assert captions.read("cat.png") == ("a cat",)
    assert captions.read("dog.png") == ("a dog", "一只狗")
    with pytest.raises(DataError, match="is not JSON"):
        captions.read("bad.png")
    (tmp_path / "list.json").write_text('[{"filename": "cat.png", "caption": "listed"}, 3]')
    (tmp_path / "map.json").write_text('{"cat.png": "mapped", "dog.png": {"caption": "too"}, "x.png": 3}')
    listed = reader(tmp_path, caption_strategy="json", caption_file="list.json")
    mapped = reader(tmp_path, caption_strategy="json", caption_file="map.json")
    assert (listed.read("cat.png"), mapped.read("cat.png"), mapped.read("dog.png")) == (
        ("listed",), ("mapped",), ("too",)
    )  # fmt: skip
    assert len(listed.dropped) == len(mapped.dropped) == 1


def test_instance_prompts(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text("a cat\n一只猫")
    assert reader(tmp_path, instance_prompt="ink", only_instance_prompt=True).read("cat.png") == ("ink",)
    assert reader(tmp_path, instance_prompt="ink", caption_strategy="instanceprompt").read("none.png") == ("ink",)
    assert reader(tmp_path, instance_prompt="ink", prepend_instance_prompt=True).read("cat.png") == (
        "ink, a cat", "ink，一只猫"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red apple", "en"),
        ("it's a well-known café", "en"),
        ("一个红苹果", "zh"),
        ("一只猫，ink style", "zh"),
        ("a sign that says “你好” in a shop window", "en"),
        ("赤いりんごの絵", "other"),
        ("красное яблоко", "other"),
        ("빨간 사과", "other"),
        ("123, 456", "other"),
        ("", "other"),
        ("𠮷野家", "zh"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("caption", "words", "expected"),
    [
        ("a cat", ("ink",), "ink, a cat"),
        ("一只猫", ("ink", "版画"), "ink，版画，一只猫"),
        ("an Ink cat", ("ink",), "an Ink cat"),
        ("a drink", ("ink",), "ink, a drink"),
        ("一只猫，版画风格", ("版画",), "一只猫，版画风格"),
        ("a sks dog", ("sks dog", "c++"), "c++, a sks dog"),
        ("cat", (), "cat"),
    ],
)
def test_trigger_words_come_before_captions_that_lack_them(caption: str, words: tuple[str, ...], expected: str) -> None:
    assert with_trigger_words(caption, words) == expected


def test_tags_change_places_and_nothing_else() -> None:
    orders = tag_orders("1girl, red hair,hat, sits, sea, sky, sun", keep=2)
    assert len(orders) == len(set(orders)) == 8
    assert orders[0] == "1girl, red hair, hat, sits, sea, sky, sun"
    assert all(order.startswith("1girl, red hair, ") for order in orders)
    assert {tuple(sorted(order.split(", "))) for order in orders} == {tuple(sorted(orders[0].split(", ")))}
    assert orders == tag_orders("1girl, red hair,hat, sits, sea, sky, sun", keep=2)


@pytest.mark.parametrize(
    ("caption", "keep", "expected"),
    [
        ("猫，红色，坐着。", 1, {"猫，红色，坐着。", "猫，坐着，红色。"}),
        ("猫、红色", 0, {"猫、红色", "红色、猫"}),
        ('a, "b, c"', 0, {'a, "b, c"', '"b, c", a'}),
        ("1,000 cats, sea", 0, {"1,000 cats, sea", "sea, 1,000 cats"}),
        ("a, a", 0, {"a, a"}),
        ("a cat", 0, {"a cat"}),
        ("", 0, {""}),
    ],
)
def test_tags_between_commas_of_any_kind(caption: str, keep: int, expected: set[str]) -> None:
    assert set(tag_orders(caption, keep=keep)) == expected


def test_what_is_composed_is_what_was_embedded() -> None:
    one = sample("a, b, c, d, e", "甲，乙，丙", shuffle_tags=True, keep_tags=0, trigger_words=("ink",))
    possible = possible_captions(one)
    assert len(possible) == 8 + 6
    assert all(text.startswith("ink") for text in possible)
    assert {compose_caption(one, random.Random(seed)) for seed in range(400)} == set(possible)
    plain = sample("a, b", "甲")
    assert possible_captions(plain) == ("a, b", "甲")
    assert compose_caption(plain, random.Random(1)) == compose_caption(plain, random.Random(1))
