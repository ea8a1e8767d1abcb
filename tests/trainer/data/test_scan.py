"""Scans of realistic directories and buckets: samples, dropped files with their problems, warnings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from longcat.errors import ConfigError, DataError
from longcat.storage.atomic import write_atomically
from tests import ROOT
from tests.trainer.data.scanning import codes, config, keys, look, picture, reasons, refusal, refusals, warnings
from trainer.data.buckets import Bucket
from trainer.data.pictures import read_pixels
from trainer.data.scanning.dataset_scan import PromptLimit
from trainer.data.sources import OUTPUT_MARK
from trainer.loop.sampler import Sampler


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
    problem = refusal(config(tmp_path / "nowhere"))
    assert (problem.code, problem.field) == ("dataset_folder_missing", "instance_data_dir")
    assert problem.value == str(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert refusal(config(tmp_path / "file")).code == "dataset_folder_not_directory"
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    assert "there is no picture in pictures" in str(refusal(config(empty)))
    for number in range(7):
        picture(full / f"{number}.png", caption=None)
    (full / "x.txt").touch()
    whole, *dropped = refusals(config(full), config(empty, id="other"))
    assert str(whole) == (
        f"no picture with a caption can be used in pictures ({full}, 7 .png, 1 .txt), other ({empty}): "
        "7 files are dropped; correct the problem of each"
    )
    assert [problem.value for problem in dropped] == [f"{number}.png" for number in range(5)]
    assert str(dropped[0]).startswith("file = 0.png: no caption: 0.txt does not")
    assert len(look(config(full), allow_empty=True).dropped) == 7
    assert refusal().code == "no_training_data"


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
        "import json, sys; from tests.trainer.data import scanning as t; from pathlib import Path\n"
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


def test_pictures_outside_the_limits_are_dropped(tmp_path: Path) -> None:
    for name, size in (
        ("tiny", (32, 32)),
        ("huge", (900, 900)),
        ("tall", (64, 250)),
        ("wide", (260, 64)),
        ("ok", (120, 120)),
    ):
        picture(tmp_path / f"{name}.png", size=size)
    limits = {"minimum_image_size": 100, "minimum_aspect_ratio": 0.5}
    found = look(config(tmp_path, **limits, maximum_aspect_ratio=2))
    assert keys(found) == ["huge.png", "ok.png"]
    assert reasons(found) == {
        "tiny.png": "32 x 32 px: 32 is less than minimum_image_size 100",
        "tall.png": "64 x 250 px: 0.256 is less than minimum_aspect_ratio 0.5",
        "wide.png": "260 x 64 px: 4.06 is more than maximum_aspect_ratio 2",
    }
    found = look(config(tmp_path, max_upscale_threshold=0.2))
    assert keys(found) == ["huge.png", "ok.png"]
    assert "bucket 128x128 enlarges it 4.00 times, more than max_upscale_threshold 0.2" in reasons(found)["tiny.png"]
    small = look(config(tmp_path, minimum_image_size=0.5, resolution_type="area", resolution=0.016384))
    assert keys(small) == ["huge.png"]


def test_pictures_over_the_maximum_are_reduced_before_they_are_cropped(tmp_path: Path) -> None:
    picture(tmp_path / "large.png", size=(800, 600))
    picture(tmp_path / "small.png", size=(240, 180))
    (covering,) = look(config(tmp_path, maximum_image_size=700, crop_aspect="square")).samples[:1]
    assert covering.crop.resized == (171, 128)  # without a target, like every picture: just covering its bucket
    large, small = look(
        config(tmp_path, maximum_image_size=256, target_downsample_size=200, crop_aspect="square")
    ).samples
    # sqrt(w h) becomes 200, and 128 x 128 px of it are kept.
    assert large.crop.resized == (231, 173)
    assert large.crop.box == (51, 22)
    assert small.crop.resized == (171, 128)
    (areas, _) = look(
        config(
            tmp_path, resolution=0.016384, resolution_type="area", maximum_image_size=0.1, target_downsample_size=0.04,
            crop_aspect="square",
        )
    ).samples  # fmt: skip
    assert areas.crop.resized == large.crop.resized


def test_buckets_of_chosen_or_random_aspects(tmp_path: Path) -> None:
    for index in range(12):
        picture(tmp_path / f"{index}.png", size=(300 + index, 200))
    wide = look(config(tmp_path, crop_aspect_buckets=(1.0, 2.0), resolution=256))
    assert {str(sample.bucket) for sample in wide.samples} == {"384x192"}  # 1.5 is nearer to 2 than to 1
    drawn = look(config(tmp_path, crop_aspect_buckets=(0.5, 1.0, 2.0), crop_aspect="random", resolution=256))
    assert len({sample.bucket for sample in drawn.samples}) == 3
    assert [sample.bucket for sample in drawn.samples] == [
        sample.bucket
        for sample in look(
            config(tmp_path, crop_aspect_buckets=(0.5, 1.0, 2.0), crop_aspect="random", resolution=256)
        ).samples
    ]


def test_a_limited_number_of_pictures_is_the_same_each_time(tmp_path: Path) -> None:
    for index in range(9):
        picture(tmp_path / f"{index}.png", size=(100 + index, 100))
    found = look(config(tmp_path, max_num_samples=4))
    assert len(found.samples) == 4
    assert found.samples == look(config(tmp_path, max_num_samples=4)).samples
    assert keys(found) != keys(look(config(tmp_path, max_num_samples=4, id="another")))
    assert [str(warning) for warning in found.warnings if warning.code == "pictures_over_limit"] == [
        "dataset = pictures: 4 of 9 pictures are used, by max_num_samples"
    ]
    assert len(look(config(tmp_path, max_num_samples=9)).samples) == 9


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

    assert refusals(config(tmp_path), prompt_limit=no_model)[0].code == "no_usable_picture"


def test_an_epoch_shows_one_of_a_bucket_at_least(tmp_path: Path) -> None:
    for name, size in (("a", (128, 128)), ("b", (128, 128)), ("wide", (256, 128))):
        picture(tmp_path / f"{name}.png", size=size)
    found = look(config(tmp_path, probability=0.1, repeats=2, resolution=256))
    assert found.pictures_an_epoch == 6  # of two buckets, one picture three times
    sampler = Sampler(found.samples, batch=1, seed=0)
    assert sampler.batches_per_epoch == found.pictures_an_epoch


def test_buckets_come_from_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (384, 192)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("a")
    found = look(config(tmp_path), resolution=("384x192", "192x384"))
    assert found.buckets == {Bucket(width_px=192, height_px=384): 1}
    assert (found.samples[0].width_px, found.samples[0].height_px) == (192, 384)
    assert read_pixels(found.samples[0]).shape == (384, 192, 3)
    with pytest.raises(ConfigError, match=r"resolution = 100x100: .*; give 128x128"):
        look(config(tmp_path), resolution=("100x100",))


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


def test_languages_of_all_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "a cat\n一只猫\nкошка")
    picture(tmp_path / "b.png", "a dog")
    found = look(config(tmp_path))
    assert found.languages == {"zh": 1, "en": 2, "other": 1}
    assert not {"no_chinese_captions", "no_english_captions"} & warnings(found).keys()


def test_unchanged_pictures_are_not_opened_again_and_captions_are(tmp_path: Path) -> None:
    index, path = tmp_path / "out" / "index.json", tmp_path / "in" / "a.png"
    picture(path)
    (path.parent / "broken.png").write_bytes(b"x" * 9)
    first = look(config(path.parent), index_file=index)
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.with_suffix(".txt").write_text("another cat")
    second = look(config(path.parent), index_file=index)
    assert second.samples[0].digest == first.samples[0].digest  # not read again: size and time are the same
    assert second.samples[0].captions == ("another cat",)
    assert reasons(second) == reasons(first)
    with pytest.raises(DataError, match="changed since dataset 'pictures' was scanned; start again"):
        read_pixels(second.samples[0])
    os.utime(path, ns=(0, 0))
    assert look(config(path.parent), index_file=index).samples[0].digest != first.samples[0].digest
    assert codes(look(config(path.parent), index_file=index, max_pixels=100, allow_empty=True))["a.png"] == (
        "picture_has_too_many_pixels"
    )


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"null", b'{"format": 1}'])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    index = tmp_path / "out" / "index.json"
    picture(tmp_path / "in" / "a.png")
    first = look(config(tmp_path / "in"), index_file=index)
    whole = index.read_bytes()
    index.write_bytes(damage)
    assert look(config(tmp_path / "in"), index_file=index).samples == first.samples
    assert index.read_bytes() == whole
    parsed = json.loads(whole)
    next(iter(parsed["sources"].values()))["a.png"]["facts"] = {"nonsense": 1}
    index.write_text(json.dumps(parsed))
    assert look(config(tmp_path / "in"), index_file=index).samples == first.samples


def test_facts_found_before_an_interruption_are_kept(tmp_path: Path) -> None:
    index = tmp_path / "out" / "index.json"
    for number in range(20):
        picture(tmp_path / "in" / f"{number:02}.png")

    def interrupt(done: int, of: int) -> None:
        assert of == 20
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(config(tmp_path / "in"), index_file=index, on_picture=interrupt)
    known = next(iter(json.loads(index.read_bytes())["sources"].values()))
    assert sorted(known) == [f"{number:02}.png" for number in range(7)]
    assert len(look(config(tmp_path / "in"), index_file=index).samples) == 20


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
        "from trainer.data.scanning.dataset_scan import ScanOptions\n"
        "from trainer.data.scan import scan\n"
        "from trainer.config.dataset_options import DatasetConfig\n"
        "from trainer.data.report import describe\n"
        f"config = DatasetConfig(id='a', instance_data_dir={str(tmp_path)!r})\n"
        "options = ScanOptions(resolution=(128.0,), resolution_type='pixel_area', alignment_px=64)\n"
        "describe(scan([config], options))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
