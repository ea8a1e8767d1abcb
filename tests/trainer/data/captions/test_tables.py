"""Captions in tables: CSV, JSON, JSON lines, and image folders of Hugging Face."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.data.captions.test_captions import problem_of, reader


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


@pytest.mark.parametrize(
    ("picture", "caption"), [("File_Name", "Text"), ("FILENAME", "Caption"), ("File Name", " PROMPT ")]
)
def test_names_of_columns_in_another_case(tmp_path: Path, picture: str, caption: str) -> None:
    (tmp_path / "a.csv").write_text(f"{picture},{caption}\ncat.png,a cat\n")
    assert reader(tmp_path, caption_strategy="csv").read("cat.png").texts == ("a cat",)
    (tmp_path / "a.jsonl").write_text(json.dumps({picture: "cat.png", caption: "a cat"}))
    assert reader(tmp_path, caption_strategy="jsonl").read("cat.png").texts == ("a cat",)


def test_a_column_in_its_own_case_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("FILENAME,filename,Caption,caption\ndog.png,cat.png,a dog,a cat\n")
    captions = reader(tmp_path, caption_strategy="csv")
    assert captions.read("cat.png").texts == ("a cat",)
    assert problem_of(lambda: captions.read("dog.png")).code == "caption_row_missing"


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


def test_a_picture_that_json_names_twice_is_not_the_last_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text('{"a.png": "a cat", "a.png": "a dog"}')
    error = problem_of(lambda: reader(tmp_path, caption_strategy="json").read("a.png"))
    assert (error.code, error.details["key"]) == ("caption_key_twice", "a.png")


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


def test_the_only_json_file_is_a_table_unless_it_is_beside_a_picture(tmp_path: Path) -> None:
    for name in ("cat.png", "dog.png"):
        (tmp_path / name).touch()
    (tmp_path / "meta_cap.json").write_text('{"cat": {"caption": "a cat"}, "dog": {"caption": "a dog"}}')
    captions = reader(tmp_path, caption_strategy="json")
    assert [captions.read(name).texts for name in ("cat.png", "dog.png")] == [("a cat",), ("a dog",)]
    (tmp_path / "meta_cap.json").rename(tmp_path / "cat.json")
    (tmp_path / "cat.json").write_text('{"caption": "a cat"}')
    captions = reader(tmp_path, caption_strategy="json")
    assert captions.read("cat.png").texts == ("a cat",)
    assert problem_of(lambda: captions.read("dog.png").texts).code == "caption_file_missing"
