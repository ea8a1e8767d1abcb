"""Scans of realistic directories and buckets: samples, dropped files with their problems, warnings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longcat.errors import DataError
from longcat.storage.atomic import write_atomically
from tests import ROOT
from tests.trainer.data.scans import codes, config, keys, look, picture, problem_of, problems_of, reasons, warnings
from trainer.data.scanning.options import PromptLimit
from trainer.data.sources import OUTPUT_MARK


def test_usable_files_become_samples_and_others_are_dropped(mess: Path) -> None:
    found = look(config(mess))
    assert keys(found) == sorted(
        ["a/nested.JPG", "b.png", "chinese.png", "really_png.jpg", "wide.webp", "windows.png", "猫 1.png"]
    )
    captions = {sample.key: sample.captions for sample in found.samples}
    assert captions["b.png"] == ("a cat", "一只猫")
    assert captions["chinese.png"] == ("一只猫",)
    assert captions["windows.png"] == ("a window",)
    expected = {
        "truncated.jpg": "picture_damaged",
        "empty.png": "picture_empty",
        "page.png": "picture_is_text",
        "bomb.png": "picture_has_too_many_pixels",
        "bare.png": "caption_file_missing",
        "blank.png": "caption_file_empty",
        "phone.HEIC": "picture_kind_unsupported",
        "what.dat": "picture_ending_unknown",
        "README": "picture_ending_unknown",
        "loop": "data_folder_searched_already",
        "gone.png": "data_link_broken",
        "pipe.png": "data_file_not_regular",
    }
    assert codes(found) == expected
    assert reasons(found)["bare.png"] == "no caption: bare.txt does not exist; write its caption there"
    assert "really_png.jpg (PNG)" in warnings(found)["pictures_of_another_format"]
    assert warnings(found)["captions_not_utf8"] == (
        "dataset = pictures: chinese.txt: not UTF-8, read as GB18030; check that the captions are readable"
    )


def test_the_error_of_unusable_data_names_folders_files_and_problems(tmp_path: Path) -> None:
    problem = problem_of(config(tmp_path / "nowhere"))
    assert (problem.code, problem.field) == ("dataset_folder_missing", "instance_data_dir")
    assert problem.value == str(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert problem_of(config(tmp_path / "file")).code == "dataset_folder_not_directory"
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    assert "there is no picture in pictures" in str(problem_of(config(empty)))
    for number in range(7):
        picture(full / f"{number}.png", caption=None)
    (full / "x.txt").touch()
    whole, *dropped = problems_of(config(full), config(empty, id="other"))
    assert str(whole) == (
        f"no picture with a caption can be used in pictures ({full}, 7 .png, 1 .txt), other ({empty}): "
        "7 files are dropped; correct the problem of each"
    )
    assert [problem.value for problem in dropped] == [f"{number}.png" for number in range(5)]
    assert str(dropped[0]).startswith("file = 0.png: no caption: 0.txt does not")
    assert len(look(config(full), allow_empty=True).dropped) == 7
    assert problem_of().code == "no_training_data"


def test_one_empty_dataset_among_others_is_a_warning(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "two").mkdir()
    found = look(config(tmp_path / "one"), config(tmp_path / "two", id="two"))
    assert len(found.samples) == 1
    assert "two (" in warnings(found)["no_pictures"]


def test_files_without_permission_are_dropped(tmp_path: Path) -> None:
    for name in ("a.png", "locked.png", "shut/b.png"):
        picture(tmp_path / name)
    code = (
        "import json, sys; from tests.trainer.data import scans as t; from pathlib import Path\n"
        "found = t.look(t.config(Path(sys.argv[1])))\n"
        "print(json.dumps([t.keys(found), t.reasons(found)]))"
    )
    # In a process of its own, in which root drops the capabilities to read every file.
    without_privileges = ["setpriv", "--bounding-set", "-all"] if os.geteuid() == 0 else []
    (tmp_path / "locked.png").chmod(0)
    (tmp_path / "shut").chmod(0)
    try:
        done = subprocess.run(
            [*without_privileges, sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    finally:
        (tmp_path / "shut").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["a.png"],
        {"locked.png": "cannot be read: Permission denied", "shut": "cannot be listed: Permission denied"},
    ]


def test_several_datasets_with_repeats_and_weights(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png", "two/c.png"):
        picture(tmp_path / name)
    found = look(
        config(tmp_path / "two", id="two", repeats=3, trigger_words=("ink", "版画")),
        config(tmp_path / "one", id="one", probability=0.5, trigger_words=("ink", "oil")),
    )
    assert [(s.dataset, s.key, s.repeats, s.probability) for s in found.samples] == [
        ("two", "c.png", 3, 1.0), ("one", "a.png", 0, 0.5), ("one", "b.png", 0, 0.5)
    ]  # fmt: skip
    assert found.trigger_words == ("ink", "版画", "oil")
    assert found.pictures_an_epoch == 5


def test_directories_that_trainings_write_to_are_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "out" / "validation" / "b.png")
    picture(tmp_path / "out2" / "c.png")
    write_atomically(tmp_path / "out" / OUTPUT_MARK, b"")
    assert keys(look(config(tmp_path))) == ["a.png", "out2/c.png"]
    write_atomically(tmp_path / OUTPUT_MARK, b"")  # the directory itself was requested
    assert keys(look(config(tmp_path))) == ["a.png", "out2/c.png"]


def test_links_are_followed_inside_the_dataset_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    picture(data / "real" / "a.png")
    picture(tmp_path / "elsewhere" / "b.png")
    (data / "linked.png").symlink_to(data / "real" / "a.png")
    (data / "linked.txt").symlink_to(data / "real" / "a.txt")
    (data / "b.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (data / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root").symlink_to(data)  # the dataset's own directory may be a link
    for root in (data, tmp_path / "root"):
        found = look(config(root))
        assert keys(found) == ["linked.png", "real/a.png"]
        assert codes(found) == {"b.png": "data_link_outside", "folder": "data_link_outside"}


def test_what_is_wrong_with_the_data_is_found_before_a_model_is_needed(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption=None)

    def no_model() -> PromptLimit:
        raise AssertionError

    assert problems_of(config(tmp_path), prompt_limit=no_model)[0].code == "no_usable_picture"


def test_captions_that_are_too_long_are_dropped_and_the_others_kept(tmp_path: Path) -> None:
    picture(tmp_path / "some.png", caption="a cat\n" + "word " * 40)
    picture(tmp_path / "none.png", caption="word " * 40 + "\n" + "words " * 50)
    found = look(
        config(tmp_path), prompt_limit=lambda: PromptLimit(max_tokens=32, count=lambda text: len(text.split()))
    )
    assert {s.key: s.captions for s in found.samples} == {"some.png": ("a cat",)}
    assert [(drop.key, drop.problem.problem) for drop in found.dropped] == [
        ("none.png", "a caption has 40 tokens; the model reads at most 32"),
        ("some.png", "a caption has 40 tokens; the model reads at most 32"),
    ]
    words = config(tmp_path, trigger_words=tuple(f"w{number}" for number in range(31)))
    with pytest.raises(DataError, match="33 tokens"):
        look(words, prompt_limit=lambda: PromptLimit(max_tokens=32, count=lambda text: len(text.split())))


def test_the_hash_covers_contents_not_names(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png"):
        picture(tmp_path / name)
    first = look(config(tmp_path / "one")).hash
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "two/a.png").rename(tmp_path / "two/z.png")
    (tmp_path / "two/a.txt").rename(tmp_path / "two/z.txt")
    assert look(config(tmp_path / "two", id="other")).hash == first
    changed = [{"repeats": 1}, {"trigger_words": ["ink"]}, {"shuffle_tags": True}, {"alpha_colour": "#000000"}]
    hashes = {look(config(tmp_path / "two", **given)).hash for given in changed}
    hashes |= {look(config(tmp_path / "two"), resolution=(256.0,)).hash, first}
    (tmp_path / "two/z.txt").write_text("another cat")
    assert len(hashes | {look(config(tmp_path / "two")).hash}) == 7


def test_warnings(tmp_path: Path) -> None:
    picture(tmp_path / "small.png", "a cat", size=(64, 64))
    picture(tmp_path / "strip.png", "a dog", size=(600, 128))
    picture(tmp_path / "good.png", "a cow")
    for ending in (".png", ".txt"):
        (tmp_path / f"copy{ending}").write_bytes((tmp_path / f"good{ending}").read_bytes())
    picture(tmp_path / ".aside" / "x.png")
    found = warnings(look(config(tmp_path), batch_size=5))
    assert "fewer pictures than a batch of 5 in 128x128 (4); they are repeated" in found["bucket_smaller_than_batch"]
    assert "no_chinese_captions" in found
    assert "pictures: copy.png = pictures: good.png" in found["pictures_repeated"]
    assert found["pictures_enlarged"].startswith(
        "1 of 4 pictures are enlarged by more than 1.5, which blurs them: pict"
    )
    assert found["pictures_cut"].startswith("1 of 4 pictures are cut to less than half: pictures: strip.png")
    stretched = warnings(look(config(tmp_path, crop=False), batch_size=4))
    assert "strip.png" in stretched["pictures_stretched"]
    assert "bucket_smaller_than_batch" not in stretched
    both = look(config(tmp_path / ".aside"), config(tmp_path / ".aside", id="large", resolution=256))
    assert "pictures_repeated" not in warnings(both)
    for name in ("small", "strip", "good", "copy"):
        (tmp_path / f"{name}.txt").write_text("一只猫")
    assert "no_english_captions" in warnings(look(config(tmp_path)))


def test_the_numbers_of_kohyas_folders_are_no_repeats(tmp_path: Path) -> None:
    picture(tmp_path / "10_cat woman" / "a.png")
    picture(tmp_path / "2024" / "b.png")
    assert "before 10_cat woman are no repeats" in warnings(look(config(tmp_path)))["folder_numbers_unused"]
    assert "folder_numbers_unused" in warnings(look(config(tmp_path / "10_cat woman")))
    assert "folder_numbers_unused" not in warnings(look(config(tmp_path / "10_cat woman", repeats=9)))
    assert "folder_numbers_unused" not in warnings(look(config(tmp_path / "2024")))


def test_languages_of_all_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "a cat\n一只猫\nкошка")
    picture(tmp_path / "b.png", "a dog")
    found = look(config(tmp_path))
    assert found.languages == {"zh": 1, "en": 2, "other": 1}
    assert not {"no_chinese_captions", "no_english_captions"} & warnings(found).keys()


def test_rows_of_tables_without_a_picture_are_reported(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", caption=None)
    (tmp_path / "all.jsonl").write_text(
        '{"filename": "a.png", "caption": "a"}\n{"filename": "x.png", "caption": "x"}\n{'
    )
    found = look(config(tmp_path, caption_strategy="jsonl"))
    assert keys(found) == ["a.png"]
    assert codes(found) == {"b.png": "caption_row_missing", "all.jsonl line 3": "caption_not_json"}
    assert "captions of x.png belong to no picture" in warnings(found)["captions_without_picture"]


def test_no_torch(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    code = (
        "import sys\n"
        "from trainer.data.scanning.options import ScanOptions\n"
        "from trainer.data.scan import scan\n"
        "from trainer.config.dataset_options import DatasetConfig\n"
        "from trainer.data.report import describe\n"
        f"config = DatasetConfig(id='a', instance_data_dir={str(tmp_path)!r})\n"
        "options = ScanOptions(resolution=(128.0,), resolution_type='pixel_area', alignment_px=64)\n"
        "describe(scan([config], options))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
