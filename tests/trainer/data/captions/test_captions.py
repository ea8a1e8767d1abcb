"""Captions: sources, tables, language, trigger words, tags."""

import codecs
from collections.abc import Callable
from pathlib import Path

import pytest

from longcat.errors import DataError
from longcat.problem import Problem
from trainer.config.dataset_options import DatasetConfig
from trainer.data.buckets import Bucket, Crop
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


def test_caption_files_of_either_ending(tmp_path: Path) -> None:
    (tmp_path / "cat.caption").write_text("a cat")
    assert reader(tmp_path).read("cat.png").texts == ("a cat",)
    (tmp_path / "cat.txt").write_text("the cat")
    assert reader(tmp_path).read("cat.png").texts == ("the cat",)


def test_instance_prompts(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text("a cat\n一只猫")
    assert reader(tmp_path, instance_prompt="ink", only_instance_prompt=True).read("cat.png").texts == ("ink",)
    assert reader(tmp_path, instance_prompt="ink", caption_strategy="instanceprompt").read("none.png").texts == ("ink",)
    assert reader(tmp_path, instance_prompt="ink", prepend_instance_prompt=True).read("cat.png").texts == (
        "ink, a cat", "ink，一只猫"
    )  # fmt: skip
