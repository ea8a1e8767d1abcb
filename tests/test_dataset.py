"""A scan of directories and buckets as people have them: what is used, what is dropped with its reason, what is said."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from PIL import Image

from longcat.errors import ConfigError, DataError, StorageError
from tests.conftest import BUCKET
from tests.test_pictures import encoded, png
from trainer.buckets import Bucket
from trainer.dataset import scan
from trainer.dataset_config import DatasetConfig
from trainer.inventory import Inventory
from trainer.pictures import read_pixels
from trainer.report import contact_sheet, describe, drawable, find_font, write_report

ROOT = Path(__file__).parent.parent


def config(folder: Path, **given: object) -> DatasetConfig:
    return DatasetConfig.model_validate({"id": "pictures", "instance_data_dir": str(folder), **given})


def look(*configs: DatasetConfig, **given: object) -> Inventory:
    options = {"resolution": (128.0,), "resolution_type": "pixel_area", "alignment_px": 64, **given}
    return scan(configs, **options)


def picture(path: Path, caption: str | None = "a cat\n一只猫", size: tuple[int, int] = (128, 128)) -> None:
    """A picture of its own content, and its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = random.Random(str(path)).randbytes(3)
    Image.new("RGB", size, tuple(colour)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def reasons(inventory: Inventory) -> dict[str, str]:
    return {drop.key: drop.reason for drop in inventory.dropped}


def keys(inventory: Inventory) -> list[str]:
    return [sample.key for sample in inventory.samples]


@pytest.fixture
def mess(tmp_path: Path) -> Path:
    """Everything that is found in people's directories, good and bad."""
    root = tmp_path / "mess"
    for name in ("b.png", "a/nested.JPG", "猫 1.png", ".hidden/x.png", ".DS.png", "wide.webp"):
        picture(root / name)
    whole = encoded(Image.effect_noise((128, 128), 50), "JPEG")
    for name, content in {
        "truncated.jpg": whole[: len(whole) // 2],
        "empty.png": b"",
        "page.png": b"<html>404</html>",
        "bomb.png": png(60_000, 60_000, bits=8, colour=2, rows=bytes(100)),
        "really_png.jpg": encoded(Image.new("RGB", (128, 128), (1, 2, 3)), "PNG"),
        "phone.HEIC": b"ftypheic",
        "what.dat": whole,
        "README": b"read me",
        "notes.md": b"not a picture, and not meant for one",
    }.items():
        (root / name).write_bytes(content)
        (root / name).with_suffix(".txt").write_text("a thing")
    picture(root / "bare.png", caption=None)
    picture(root / "blank.png", caption="\ufeff \r\n")
    picture(root / "chinese.png")
    (root / "chinese.txt").write_bytes("一只猫".encode("gb18030"))
    picture(root / "windows.png")
    (root / "windows.txt").write_bytes(b"\xef\xbb\xbfa window\r\n\r\n")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "pipe.png")
    return root


def test_a_mess_is_sorted_out(mess: Path) -> None:
    found = look(config(mess))
    assert keys(found) == sorted(
        ["a/nested.JPG", "b.png", "chinese.png", "really_png.jpg", "wide.webp", "windows.png", "猫 1.png"]
    )
    captions = {sample.key: sample.captions for sample in found.samples}
    assert captions["b.png"] == ("a cat", "一只猫")
    assert captions["chinese.png"] == ("一只猫",)
    assert captions["windows.png"] == ("a window",)
    expected = {
        "truncated.jpg": "damaged or cut short",
        "empty.png": "is empty: 0 bytes",
        "page.png": "no picture that can be read",
        "bomb.png": "decompression bomb",
        "bare.png": "has no caption: bare.txt is not there",
        "blank.png": "has no caption: its caption file has none",
        "phone.HEIC": "convert it to PNG or JPEG",
        "what.dat": "rename it if it is one",
        "README": "has no ending",
        "loop": "searched already",
        "gone.png": "link to nothing",
        "pipe.png": "no regular file",
    }
    assert reasons(found).keys() == expected.keys()
    for key, reason in expected.items():
        assert reason in reasons(found)[key]
    warnings = "\n".join(found.warnings)
    assert "really_png.jpg (PNG) not what the ending says" in warnings
    assert "chinese.txt not in UTF-8, taken for GB18030" in warnings


def test_nothing_usable_says_where_what_and_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instance_data_dir '.*nowhere' is not there; relative paths start at"):
        look(config(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is no directory"):
        look(config(tmp_path / "file"))
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty holds nothing; pictures end in .*\.png"):
        look(config(empty))
    for number in range(7):
        picture(full / f"{number}.png", caption=None)
    (full / "x.txt").touch()
    with pytest.raises(DataError) as refused:
        look(config(full), config(empty, id="other"))
    for part in (
        "'pictures' at",
        "holds 7 .png, 1 .txt",
        "'other' at",
        "0.png has no caption: 0.txt is not",
        "and 2 more",
    ):
        assert part in str(refused.value)
    assert len(look(config(full), allow_empty=True).dropped) == 7
    with pytest.raises(DataError, match="give instance_data_dir or data_backend_config"):
        look()


def test_one_empty_dataset_among_others_is_a_warning(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png")
    (tmp_path / "two").mkdir()
    found = look(config(tmp_path / "one"), config(tmp_path / "two", id="two"))
    assert len(found.samples) == 1
    assert any("dataset 'two'" in warning and "holds nothing" in warning for warning in found.warnings)


def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    for name in ("a.png", "locked.png", "shut/b.png"):
        picture(tmp_path / name)
    code = (
        "import json, sys; from tests import test_dataset as t; from pathlib import Path\n"
        "found = t.look(t.config(Path(sys.argv[1])))\n"
        "print(json.dumps([t.keys(found), t.reasons(found)]))"
    )
    # In a process of its own: root gives up there what lets it read everything.
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
        {"locked.png": "cannot be read: Permission denied", "shut": "cannot be looked into: Permission denied"},
    ]


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    picture(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    (tmp_path / "x.txt").rename((tmp_path / name).with_suffix(".txt"))
    found = look(config(tmp_path), index_file=tmp_path / "out" / "index.json")
    assert keys(found) == [name]
    write_report(found, tmp_path / "report.json")
    contact_sheet(found, tmp_path / "sheet.png")
    assert "usable: 1 pictures" in describe(found)
    again = look(config(tmp_path), index_file=tmp_path / "out" / "index.json")
    assert (again.hash, keys(again)) == (found.hash, [name])
    dropped = look(config(tmp_path, caption_strategy="filename"), allow_empty=True)
    assert "no Unicode text" in reasons(dropped)[name]
    write_report(dropped, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["dropped"][0]["key"] == name
    assert "caf\\udce9.png" in describe(dropped)


def test_several_datasets_with_repeats_and_weights(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png", "two/c.png", "off/d.png"):
        picture(tmp_path / name)
    found = look(
        config(tmp_path / "two", id="two", repeats=3, trigger_words=("ink", "版画")),
        config(tmp_path / "one", id="one", probability=0.5, trigger_words=("ink", "oil")),
        config(tmp_path / "off", id="off", disabled=True),
    )
    assert [(s.dataset, s.key, s.repeats, s.probability) for s in found.samples] == [
        ("two", "c.png", 3, 1.0), ("one", "a.png", 0, 0.5), ("one", "b.png", 0, 0.5)
    ]  # fmt: skip
    assert found.trigger_words == ("ink", "版画", "oil")
    assert found.pictures_an_epoch == 5


def test_sizes_that_are_not_wanted(tmp_path: Path) -> None:
    for name, size in (
        ("tiny", (32, 32)),
        ("huge", (900, 900)),
        ("tall", (64, 250)),
        ("wide", (260, 64)),
        ("ok", (120, 120)),
    ):
        picture(tmp_path / f"{name}.png", size=size)
    limits = {"minimum_image_size": 100, "maximum_image_size": 800, "minimum_aspect_ratio": 0.5}
    found = look(config(tmp_path, **limits, maximum_aspect_ratio=2))
    assert keys(found) == ["ok.png"]
    said = reasons(found)
    assert said["tiny.png"] == "is 32 x 32 px: 32 is less than minimum_image_size 100"
    assert said["huge.png"] == "is 900 x 900 px: 900 is more than maximum_image_size 800"
    assert "0.256 is less than minimum_aspect_ratio 0.5" in said["tall.png"]
    assert "4.06 is more than maximum_aspect_ratio 2" in said["wide.png"]
    found = look(config(tmp_path, max_upscale_threshold=0.2))
    assert keys(found) == ["huge.png", "ok.png"]
    assert "bucket 128x128 enlarges it 4.00 times, more than max_upscale_threshold 0.2" in reasons(found)["tiny.png"]
    small = look(config(tmp_path, minimum_image_size=0.5, resolution_type="area", resolution=0.016384))
    assert keys(small) == ["huge.png"]


def test_buckets_come_from_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (384, 192)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("a")
    found = look(config(tmp_path), resolution=("384x192", "192x384"))
    assert found.buckets == {Bucket(width_px=192, height_px=384): 1}
    assert (found.samples[0].width_px, found.samples[0].height_px) == (192, 384)
    assert read_pixels(found.samples[0]).shape == (384, 192, 3)
    with pytest.raises(ConfigError, match="give 128x128"):
        look(config(tmp_path), resolution=("100x100",))


def test_captions_that_are_too_long_are_dropped_and_the_others_kept(tmp_path: Path) -> None:
    picture(tmp_path / "some.png", caption="a cat\n" + "word " * 40)
    picture(tmp_path / "none.png", caption="word " * 40 + "\n" + "words " * 50)
    found = look(config(tmp_path), count_tokens=lambda text: len(text.split()), max_prompt_tokens=32)
    assert {s.key: s.captions for s in found.samples} == {"some.png": ("a cat",)}
    assert [(drop.key, drop.reason.partition(":")[0]) for drop in found.dropped] == [
        ("none.png", "has a caption of 40 tokens; the model reads 32"),
        ("some.png", "has a caption of 40 tokens; the model reads 32"),
    ]
    words = config(tmp_path, trigger_words=tuple(f"w{number}" for number in range(31)))
    with pytest.raises(DataError, match="33 tokens"):
        look(words, count_tokens=lambda text: len(text.split()), max_prompt_tokens=32)


def test_the_hash_is_of_what_is_learnt_not_of_names(tmp_path: Path) -> None:
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
    said = "\n".join(look(config(tmp_path), batch_size=5).warnings)
    assert "fewer pictures than a batch of 5 in bucket 128x128 (4): they are repeated" in said
    assert "no caption is Chinese" in said
    assert "the same picture more than once, and so seen more often: pictures: copy.png = pictures: good.png" in said
    assert "1 of 4 pictures (pictures: small.png) are enlarged by more than 1.5" in said
    assert "1 of 4 pictures (pictures: strip.png) are cut to less than half" in said
    stretched = "\n".join(look(config(tmp_path, crop=False), batch_size=4).warnings)
    assert "strip.png) are stretched by more than a tenth" in stretched
    assert "fewer pictures" not in stretched
    both = look(config(tmp_path / ".aside"), config(tmp_path / ".aside", id="large", resolution=256))
    assert not any("more than once" in warning for warning in both.warnings)
    for name in ("small", "strip", "good", "copy"):
        (tmp_path / f"{name}.txt").write_text("一只猫")
    assert "no caption is English" in "\n".join(look(config(tmp_path)).warnings)


def test_languages_of_all_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "a cat\n一只猫\nкошка")
    picture(tmp_path / "b.png", "a dog")
    found = look(config(tmp_path))
    assert found.languages == {"zh": 1, "en": 2, "other": 1}
    assert not any("no caption is" in warning for warning in found.warnings)


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
    assert second.samples[0].digest == first.samples[0].digest  # it was not read: its size and time are the same
    assert second.samples[0].captions == ("another cat",)
    assert reasons(second) == reasons(first)
    with pytest.raises(DataError, match="has changed since"):
        read_pixels(second.samples[0])
    os.utime(path, ns=(0, 0))
    assert look(config(path.parent), index_file=index).samples[0].digest != first.samples[0].digest
    assert "claims" in reasons(look(config(path.parent), index_file=index, max_pixels=100, allow_empty=True))["a.png"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"null", b'{"format": 1}'])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    index = tmp_path / "out" / "index.json"
    picture(tmp_path / "in" / "a.png")
    first = look(config(tmp_path / "in"), index_file=index)
    whole = index.read_bytes()
    index.write_bytes(damage)
    assert look(config(tmp_path / "in"), index_file=index).samples == first.samples
    assert index.read_bytes() == whole
    said = json.loads(whole)
    next(iter(said["sources"].values()))["a.png"]["facts"] = {"nonsense": 1}
    index.write_text(json.dumps(said))
    assert look(config(tmp_path / "in"), index_file=index).samples == first.samples


def test_what_was_learnt_before_an_interruption_is_kept(tmp_path: Path) -> None:
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


def test_rows_of_tables_that_fit_nothing_are_said(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption=None)
    picture(tmp_path / "b.png", caption=None)
    (tmp_path / "all.jsonl").write_text(
        '{"filename": "a.png", "caption": "a"}\n{"filename": "x.png", "caption": "x"}\n{'
    )
    found = look(config(tmp_path, caption_strategy="jsonl"))
    assert keys(found) == ["a.png"]
    assert reasons(found)["b.png"] == "has no caption: all.jsonl has no row for it"
    assert "is not JSON" in reasons(found)["all.jsonl line 3"]
    assert any("captions of x.png belong to no picture there" in warning for warning in found.warnings)


def test_the_report_file_the_text_and_the_sheet(mess: Path, tmp_path: Path) -> None:
    found = look(config(mess, trigger_words=["版画"]))
    write_report(found, tmp_path / "out" / "report.json")
    said = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert said["pictures"] == 7
    assert said["buckets"] == {"128x128": 7}
    assert said["languages"] == found.languages
    assert said["datasets"][0]["files"][".png"] == 9
    assert {"dataset": "pictures", "key": "empty.png", "reason": "is empty: 0 bytes"} in said["dropped"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    text = describe(found)
    for part in ("usable: 7 pictures", "128x128  7", "版画", "empty.png is empty", "warnings:", "9 .png"):
        assert part in text
    (mess / "b.png").write_bytes(b"changed")
    contact_sheet(found, tmp_path / "out" / "sheet.png", most=5)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (5 * 208, 276)
        assert len(sheet.convert("RGB").getcolors(2**24) or ()) > 5
    contact_sheet(look(config(mess / "a"), allow_empty=True), tmp_path / "one.png")
    contact_sheet(Inventory(samples=(), dropped=(), warnings=(), trigger_words=()), tmp_path / "none.png")
    with Image.open(tmp_path / "none.png") as sheet:
        assert sheet.size == (208, 276)


def test_what_the_font_lacks_is_left_out() -> None:
    plain = find_font(())
    assert drawable("a cat", plain) == "a cat"
    assert drawable("一只猫, ink 版画", plain) == "…, ink …"


def test_a_terminal_is_safe_from_file_names(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J.png").touch()
    assert "\x1b" not in describe(look(config(tmp_path), allow_empty=True))


def test_no_torch(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    code = (
        "import sys\n"
        "from trainer.dataset import scan\n"
        "from trainer.dataset_config import DatasetConfig\n"
        "from trainer.report import describe\n"
        f"config = DatasetConfig(id='a', instance_data_dir={str(tmp_path)!r})\n"
        "describe(scan([config], resolution=(128.0,), resolution_type='pixel_area', alignment_px=64))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def in_store(s3_endpoint: str, tmp_path: Path) -> DatasetConfig:
    """A bucket's prefix with pictures under names that adapters would not have."""
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    prefix = f"data sets/{tmp_path.name}/猫 & 狗"
    good = [encoded(Image.new("RGB", (128, 128), colour), "PNG") for colour in ((9, 8, 7), (3, 2, 1))]
    for key, content in {
        "a cat (1).png": good[0], "a cat (1).txt": "一只猫".encode("gb18030"), "deep/猫+#?%20.PNG": good[1],
        "deep/猫+#?%20.txt": b"a dog", "empty.png": b"", "cut.png": good[0][:60], "no caption.png": good[0],
        ".hidden.png": b"x", "deep/": b"",
    }.items():  # fmt: skip
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=content)
    client.put_object(Bucket=BUCKET, Key=f"{prefix} too/a.png", Body=good[0])
    return DatasetConfig.model_validate(
        {"id": "store", "instance_data_dir": f"s3://{BUCKET}/{prefix}/", "aws_endpoint_url": s3_endpoint}
    )


def test_a_bucket_of_pictures(in_store: DatasetConfig, tmp_path: Path) -> None:
    index = tmp_path / "index.json"
    found = look(in_store, index_file=index)
    assert {s.key: s.captions for s in found.samples} == {"a cat (1).png": ("一只猫",), "deep/猫+#?%20.PNG": ("a dog",)}
    assert reasons(found).keys() == {"empty.png", "cut.png", "no caption.png"}
    assert [read_pixels(sample)[0, 0].tolist() for sample in found.samples] == [[9, 8, 7], [3, 2, 1]]
    again = look(in_store, index_file=index)
    assert (again.hash, again.samples) == (found.hash, found.samples)
    client = boto3.client("s3", endpoint_url=in_store.aws_endpoint_url)
    where = {"Bucket": BUCKET, "Key": f"{in_store.aws_data_prefix.rstrip('/')}/a cat (1).png"}
    client.put_object(**where, Body=encoded(Image.new("RGB", (128, 128), (5, 5, 5)), "PNG"))
    with pytest.raises(DataError, match=r"a cat \(1\).png has changed since"):
        read_pixels(found.samples[0])
    assert look(in_store, index_file=index).hash != found.hash
    client.delete_object(**where)
    with pytest.raises(DataError, match="is not there"):
        read_pixels(found.samples[0])
    assert keys(look(in_store, index_file=index)) == ["deep/猫+#?%20.PNG"]


def test_a_bucket_that_is_not_there_or_empty(in_store: DatasetConfig) -> None:
    with pytest.raises(StorageError, match="no such bucket"):
        look(in_store.model_copy(update={"aws_bucket_name": "nowhere"}))
    with pytest.raises(DataError, match=rf"s3://{BUCKET}/no such place holds nothing"):
        look(in_store.model_copy(update={"aws_data_prefix": "no such place"}))
