"""Captions: sources, tables, language, trigger words, tags."""

import codecs
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from longcat.errors import DataError
from longcat.problem import Problem
from trainer.config.dataset_options import DatasetConfig
from trainer.data.buckets import Bucket, Crop
from trainer.data.captions.compose import (
    compose_caption,
    possible_captions,
    tag_orders,
    with_trigger_words,
)
from trainer.data.captions.language import detect_language
from trainer.data.captions.reader import CaptionReader
from trainer.data.sample import Sample
from trainer.data.sources import open_source

CHINESE = "一只猫，蓝色背景"


def problem_of(read: Callable[[], object]) -> Problem:
    with pytest.raises(DataError) as caught:
        read()
    return caught.value.problems[0]


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
    assert captions.read("cat.png").texts == (CHINESE,)
    assert bool(captions.guessed) == guessed


def test_lines_are_alternatives_each_once(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_bytes("a cat\r\n\r\n一只猫\n  \na cat\u2028another".encode())
    assert reader(tmp_path).read("cat.png").texts == ("a cat", "一只猫", "another")
    assert reader(tmp_path, disable_multiline_split=True).read("cat.png").texts == (
        "a cat\n\n一只猫\n  \na cat\nanother",
    )


def test_names_that_differ_in_case_and_form_belong_together(tmp_path: Path) -> None:
    for name, text in (("CAT.TXT", "upper"), ("cafe\u0301.txt", "apart"), ("dog.png.txt", "whole name")):
        (tmp_path / name).write_text(text)
    captions = reader(tmp_path)
    assert [captions.read(key).texts for key in ("cat.PNG", "caf\u00e9.png", "dog.png")] == [
        ("upper",), ("apart",), ("whole name",)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no caption: cat.txt does not exist; write its caption there"),
        (b"", "no caption: its caption file has none"),
        (codecs.BOM_UTF8 + b" \r\n\xe3\x80\x80\n", "no caption: its caption file has none"),
        (b"x" * (2**20 + 1), "1,048,577 bytes, too many"),
        (
            b"\xff\xff\xff",
            "no caption: cat.txt cannot be used: not UTF-8, and its encoding is in doubt; save it as UTF-8",
        ),
    ],
)
def test_a_missing_or_empty_caption_has_its_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "cat.txt").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        reader(tmp_path).read("cat.png")


def test_file_names(tmp_path: Path) -> None:
    captions = reader(tmp_path, caption_strategy="filename")
    assert captions.read("a/a_red cat.png").texts == ("a red cat",)
    assert captions.read("一只猫.png").texts == ("一只猫",)
    for key in ("0001.png", "__.png"):
        assert problem_of(lambda key=key: captions.read(key).texts).code == "caption_name_without_letters"
    assert problem_of(lambda: captions.read("cat\udcff.png").texts).code == "caption_not_unicode"


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
    assert captions.read("cat.png").texts == ("a cat, sitting", "一只猫")
    assert captions.read("b/dog.png").texts == ("一只狗",)
    assert captions.read("deep/cat.png").texts == ("a cat, sitting", "一只猫")
    assert captions.unused() == ["bird.png"]
    assert [where for where, _ in captions.dropped] == ["all.csv line 5", "all.csv line 6"]
    assert [problem.code for _, problem in captions.dropped] == ["caption_row_unnamed", "caption_row_too_long"]
    assert problem_of(lambda: captions.read("fish.png").texts).code == "caption_row_missing"
    assert problem_of(lambda: captions.read("bird.png").texts).code == "caption_row_empty"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_of_other_columns_delimiters_and_encoding(tmp_path: Path, delimiter: str) -> None:
    text = f"图片{delimiter}text\ncat.png{delimiter}一只猫\n"
    (tmp_path / "metadata.csv").write_bytes(text.encode("gb18030"))
    problem = problem_of(lambda: reader(tmp_path, caption_strategy="csv"))
    assert str(problem) == (
        "caption_file = metadata.csv: no column 'filename' among its columns 图片, text; "
        "set filename_column and caption_column"
    )
    captions = reader(tmp_path, caption_strategy="csv", filename_column="图片")
    assert captions.read("cat.png").texts == ("一只猫",)
    problem = problem_of(
        lambda: reader(tmp_path, caption_strategy="csv", filename_column="图片", caption_column="caption")
    )
    assert problem.code == "caption_column_missing"


def test_which_table(tmp_path: Path) -> None:
    assert problem_of(lambda: reader(tmp_path, caption_strategy="csv")).code == "caption_table_missing"
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(f"filename,caption\ncat.png,{name}\n")
    assert "has 2 files for it: a.csv, b.csv" in str(problem_of(lambda: reader(tmp_path, caption_strategy="csv")))
    assert reader(tmp_path, caption_strategy="csv", caption_file="b.csv").read("cat.png").texts == ("b.csv",)
    problem = problem_of(lambda: reader(tmp_path, caption_strategy="csv", caption_file="c.csv"))
    assert (problem.code, problem.field, problem.value) == ("caption_file_not_in_dataset", "caption_file", "c.csv")


def test_a_name_that_could_be_several_pictures_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("filename,caption\ncat.png,a cat\n")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cat.png").touch()
    problem = problem_of(lambda: reader(tmp_path, caption_strategy="csv").read("a/cat.png").texts)
    assert (problem.code, problem.details["count"]) == ("caption_row_ambiguous", 2)


ROWS = ("train/a/0.png", "train/b/0.png", "train/a/1.png")


def image_folder(root: Path) -> None:
    for key in ROWS:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).touch()
        (root / key).with_suffix(".nothing").touch()


@pytest.mark.parametrize(
    "name_of",
    [
        lambda _, key: key.removeprefix("train/"),  # relative to the table
        lambda _, key: key,
        lambda root, key: str(root / key),
        lambda _, key: key.removesuffix(".png"),  # as sd-scripts' metadata
        lambda root, key: str(root / key).removesuffix(".png"),
        lambda _, key: "C:\\\\elsewhere\\\\" + {"0": "0.png", "1": "1.png"}[Path(key).stem],
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
def test_rows_name_pictures_in_any_usual_way(tmp_path: Path, name_of: Callable[[Path, str], str], ending: str) -> None:
    image_folder(tmp_path)
    rows = {name_of(tmp_path, key): f"a picture of {key}" for key in ROWS}
    match ending:
        case "csv":
            text = "filename,caption\n" + "".join(f"{name},{caption}\n" for name, caption in rows.items())
        case "jsonl":
            text = "\n".join(json.dumps({"filename": name, "caption": caption}) for name, caption in rows.items())
        case _:
            text = json.dumps({name: {"caption": caption} for name, caption in rows.items()})
    (tmp_path / "train" / f"rows.{ending}").write_text(text)
    captions = reader(tmp_path, caption_strategy=ending, caption_file=f"train/rows.{ending}")
    if len(rows) < len(ROWS):  # a path of another machine: only the file name, if it is unique
        assert captions.read("train/a/1.png").texts == ("a picture of train/a/1.png",)
        assert problem_of(lambda: captions.read("train/a/0.png").texts).code == "caption_row_ambiguous"
        return
    assert [captions.read(key).texts for key in ROWS] == [(f"a picture of {key}",) for key in ROWS]
    assert captions.unused() == []


def test_a_row_beside_the_table_is_not_one_from_the_root(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").touch()
    (tmp_path / "train" / "rows.csv").write_text("filename,caption\na/0.png,in train\n")
    captions = reader(tmp_path, caption_strategy="csv")
    assert captions.read("train/a/0.png").texts == ("in train",)
    assert problem_of(lambda: captions.read("a/0.png").texts).code == "caption_row_missing"


@pytest.mark.parametrize("strategy", [None, "csv"])
def test_an_image_folder_of_hugging_face_is_read_as_it_stands(tmp_path: Path, strategy: str | None) -> None:
    image_folder(tmp_path)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.png").touch()
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\na/0.png,one\nb/0.png,two\na/1.png,three\n")
    (tmp_path / "test" / "metadata.csv").write_text("file_name,caption\n0.png,four\n")
    captions = reader(tmp_path, **({} if strategy is None else {"caption_strategy": strategy}))
    found = [captions.read(key).texts for key in (*ROWS, "test/0.png")]
    assert found == [("one",), ("two",), ("three",), ("four",)]
    if strategy is None:
        (tmp_path / "train" / "a" / "0.txt").write_text("its own")
        assert reader(tmp_path).read("train/a/0.png").texts == ("its own",)


def test_a_missing_row_is_shown_beside_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("filename,caption\nimages\\cat_1.png,a cat\n")
    problem = problem_of(lambda: reader(tmp_path, caption_strategy="csv").read("cat.png").texts)
    assert "no caption: rows.csv has no row for it; a row of the table is for 'images/cat_1.png'" in str(problem)


def test_captions_are_files_of_the_dataset(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("filename,caption\ncat.png,secret\n")
    data = tmp_path / "data"
    data.mkdir()
    (data / "cat.png").touch()
    (data / "rows.csv").symlink_to(secret)
    (data / "cat.txt").symlink_to(secret)
    (data / "here.csv").write_text("filename,caption\ncat.png,a cat\n")
    for file in (str(secret), "../secret.csv", "rows.csv"):
        problem = problem_of(lambda file=file: reader(data, caption_strategy="csv", caption_file=file))
        assert problem.code in ("caption_file_not_in_dataset", "data_link_outside")
        assert "secret\n" not in str(problem)
    assert problem_of(lambda: reader(data).read("cat.png").texts).code == "caption_file_missing"
    for file in ("here.csv", str(data / "here.csv"), "./here.csv"):
        assert reader(data, caption_strategy="csv", caption_file=file).read("cat.png").texts == ("a cat",)


def test_caption_files_of_either_ending(tmp_path: Path) -> None:
    (tmp_path / "cat.caption").write_text("a cat")
    assert reader(tmp_path).read("cat.png").texts == ("a cat",)
    (tmp_path / "cat.txt").write_text("the cat")
    assert reader(tmp_path).read("cat.png").texts == ("the cat",)


def test_json_lines_and_those_that_are_wrong(tmp_path: Path) -> None:
    lines = [
        '{"filename": "cat.png", "caption": ["a cat", "一只猫"]}', "", "{broken", '["cat.png"]', '{"filename": "x.png"}',
        '{"filename": "y.png", "caption": [1]}', '{"filename": "z.png", "caption": "\\ud800"}',
    ]  # fmt: skip
    (tmp_path / "all.jsonl").write_bytes("\r\n".join(lines).encode())
    captions = reader(tmp_path, caption_strategy="jsonl")
    assert captions.read("cat.png").texts == ("a cat", "一只猫")
    assert [where.rpartition(" ")[2] for where, _ in captions.dropped] == ["3", "4", "5", "6"]
    assert [problem.code for _, problem in captions.dropped] == [
        "caption_not_json", "caption_key_of_picture_missing", "caption_key_missing", "caption_not_text"
    ]  # fmt: skip
    assert problem_of(lambda: captions.read("z.png").texts).code == "caption_not_unicode"


def test_json_beside_pictures_or_as_one_file(tmp_path: Path) -> None:
    (tmp_path / "cat.json").write_text('{"caption": "a cat"}')
    (tmp_path / "dog.json").write_text('["a dog", "一只狗"]')
    (tmp_path / "bad.json").write_text("[" * 100_000)
    (tmp_path / "null.json").write_text('["a bird", null]')
    captions = reader(tmp_path, caption_strategy="json")
    assert captions.read("cat.png").texts == ("a cat",)
    assert captions.read("dog.png").texts == ("a dog", "一只狗")
    problem = problem_of(lambda: captions.read("bad.png").texts)
    assert "no caption: bad.json cannot be used: not JSON" in str(problem)
    assert "caption 'None' is not text" in str(problem_of(lambda: captions.read("null.png").texts))
    (tmp_path / "list.json").write_text('[{"filename": "cat.png", "caption": "listed"}, 3]')
    (tmp_path / "map.json").write_text('{"cat.png": "mapped", "dog.png": {"caption": "too"}, "x.png": 3}')
    listed = reader(tmp_path, caption_strategy="json", caption_file="list.json")
    mapped = reader(tmp_path, caption_strategy="json", caption_file="map.json")
    assert (listed.read("cat.png").texts, mapped.read("cat.png").texts, mapped.read("dog.png").texts) == (
        ("listed",), ("mapped",), ("too",)
    )  # fmt: skip
    assert len(listed.dropped) == len(mapped.dropped) == 1


def test_instance_prompts(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text("a cat\n一只猫")
    assert reader(tmp_path, instance_prompt="ink", only_instance_prompt=True).read("cat.png").texts == ("ink",)
    assert reader(tmp_path, instance_prompt="ink", caption_strategy="instanceprompt").read("none.png").texts == ("ink",)
    assert reader(tmp_path, instance_prompt="ink", prepend_instance_prompt=True).read("cat.png").texts == (
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
