"""Untrusted pictures, recipes and zips: one of our errors, never another exception."""

import io
import json
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

from hypothesis import strategies as st

from longcat.errors import LithographError
from service.wire.picture import RECIPE_KEY, Recipe, read_recipe
from studio.datasets.captions import read_captions, write_captions
from studio.datasets.uploads import UploadLimits, add, create, safe_key
from tests.fuzz.cases import check_error, try_all
from tests.fuzz.values.pictures import picture, png, zipped
from tests.fuzz.values.strange import RAW_JSON, TEXTS, UNICODE, broken, changed_within, json_bytes, one_of_these
from trainer.data.pictures import inspect

RECIPE = {
    "format": 1,
    "request": {
        "prompt": "a cat", "negative_prompt": "", "width": 64, "height": 64, "steps": 1, "guidance_scale": 1.0,
        "seed": 1, "num_images": 1,
        "cfg_renorm": True, "rewrite_prompt": False, "output_format": "png", "adapters": [{"name": "ink@1", "scale": 1.0}],
    },
    "model": {"flavour": "embedded", "revision": None, "hash": "0" * 64, "precision": "no_change",
    "text_encoder_precision": "no_change",
              "dtype": "float32"},
    "adapters": [{"name": "ink", "version": 1, "scale": 1.0, "sha256": "0" * 64, "modules": 1}],
}  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
MODES = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "I;16", "1"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "LAB", "F", "I"),
    "GIF": ("P", "L"),
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@st.composite
def png_chunks(draw: st.DrawFn) -> bytes:
    """Return a PNG with well-formed chunks of strange content."""
    width, height = draw(st.tuples(*[st.sampled_from([0, 1, 8, 2**16, 2**31 - 1, 2**32 - 1])] * 2))
    header = struct.pack(
        ">IIBBBBB", width, height, draw(st.sampled_from([1, 8, 16, 3])), draw(st.sampled_from([0, 2, 3, 6, 7])), 0, 0, 0
    )
    kinds = st.sampled_from(
        [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"gAMA", b"pHYs"]
    )
    data = st.one_of(
        st.binary(max_size=30),
        one_of_these([zlib.compress(b"\0" * 10**6), b"k\0\0" + zlib.compress(b"a" * 10**7), b""]),
    )
    chunks = b"".join(chunk(kind, content) for kind, content in draw(st.lists(st.tuples(kinds, data), max_size=3)))
    pixels = zlib.compress(draw(st.sampled_from([b"", b"\0" * 100, b"\0" * 10**6])))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunks
        + chunk(b"IDAT", pixels)
        + draw(st.sampled_from([b"", chunk(b"IEND", b"")]))
    )


def valid_pictures() -> st.SearchStrategy[bytes]:
    found = [picture(format_, mode=mode) for format_ in FORMATS for mode in MODES.get(format_, ("RGB",))]
    return one_of_these(found)


def test_no_picture_raises_another_exception() -> None:
    usable = 0

    def check(content: bytes) -> None:
        nonlocal usable
        facts = inspect(content, max_pixels=10**6)
        if facts.problem is not None:
            json.dumps(facts.problem.to_json())
        else:
            usable += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged files
        try_all("pictures", check, st.one_of(broken(valid_pictures()), png_chunks()), cases=60)
    assert usable


def test_no_recipe_raises_another_exception(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    text = json.dumps(RECIPE)
    path.write_bytes(png(lithograph=text))
    assert isinstance(read_recipe(path), Recipe)
    recipes = st.one_of(json_bytes(changed_within(RECIPE)), RAW_JSON).map(lambda text: text.decode("utf-8", "replace"))
    files = st.one_of(
        recipes.map(lambda text: png(**{RECIPE_KEY: text})), broken(st.just(png(lithograph=text))), png_chunks()
    )

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read_recipe(path)
        except LithographError as error:
            check_error(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try_all("recipes", check, files, cases=80)


NAMES = st.one_of(
    one_of_these([
        "a.png", "a.txt", "A.PNG", "sub/a.png", "a.png/b.png", "../a.png", "/a.png", "C:\\a.png", "a\\b.png",
        ".hidden.png", "a.exe", "a",
        "x/" * 20 + "a.png", "n" * 250 + ".png", "一.png", "e\u0301.png", "é.png", "con.png", "a.png.",
        " a.png ", "a/", "/", ".png",
        "__MACOSX/a.png", "a.zip", "\udcff.png", "a\0.png", "a.png/", "sub", "sub/a.png/../b.png",
    ]),
    TEXTS.map(lambda text: f"{text}.png"),
)  # fmt: skip
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Return a zip with strange names, damaged or not, or with a repeated name."""
    contents = st.one_of(st.just(png()), st.just(b"a cat"), st.binary(max_size=50))
    names = NAMES.map(lambda name: name.encode("utf-8", "replace").decode())
    members = draw(st.lists(st.tuples(names, contents), max_size=4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about repeated names
        whole = zipped(members, draw(st.sampled_from(METHODS)))
    return draw(broken(st.just(whole)))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def test_no_upload_raises_another_exception_or_leaves_the_dataset(tmp_path: Path) -> None:
    limits = UploadLimits(files=20, total_bytes=10**6, file_bytes=10**5, pixels=10**6)
    uploads, number = tmp_path / "uploads", 0
    outside = tmp_path / "outside.txt"
    outside.write_text("as it was")

    def check(name: str, content: bytes, second: bytes) -> None:
        nonlocal number
        number += 1
        folder = uploads / str(number)
        for how, given in (
            (create, [("z.zip", content)]),
            (create, [(name, content)]),
            (add, [("z.zip", second), (name, content)]),
        ):
            if how is create and folder.exists():
                continue
            folder.mkdir(parents=True, exist_ok=True) if how is add else None
            try:
                received = how(folder, [(name, io.BytesIO(content)) for name, content in given], limits)
                json.dumps([problem.to_json() for _, problem in received.refused])
            except LithographError as error:
                check_error(error)
        assert all(path.is_relative_to(folder) and not path.is_symlink() for path in files_below(uploads))
        assert files_below(tmp_path / "uploads") == files_below(folder)
        assert outside.read_text() == "as it was"
        for path in files_below(folder):
            path.unlink()
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir()
        folder.rmdir()

    contents = st.one_of(archives(), archives(), broken(st.just(png())), st.binary(max_size=30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try_all("uploads", check, NAMES, contents, archives(), cases=60)


def test_no_name_leads_out_of_a_dataset() -> None:
    def check(name: str) -> None:
        try:
            key = safe_key(name)
        except LithographError:
            return
        assert Path("/data", key).resolve().is_relative_to("/data")
        assert Path("/data", key).resolve() != Path("/data")

    try_all("names of files", check, st.one_of(NAMES, TEXTS), cases=80)


def test_no_caption_is_lost_or_refused_in_another_way(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())

    def check(text: str, content: bytes) -> None:
        (tmp_path / "a.txt").write_bytes(content)
        try:
            read_captions(tmp_path / "a.png")
            write_captions(tmp_path / "a.png", text)
            read_captions(tmp_path / "a.png")
        except LithographError as error:
            check_error(error)

    try_all(
        "captions in the studio", check, TEXTS, st.one_of(st.binary(max_size=30), UNICODE.map(str.encode)), cases=120
    )
