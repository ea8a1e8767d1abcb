"""Pictures of every kind, written by Pillow or here: decoded, or rejected with a problem."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from longcat.errors import DataError
from longcat.sampling.encoding.picture_file import decode
from trainer.data.pictures import inspect, is_promised

MOST = 10_000_000
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
NOISE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, bits: int, colour: int, rows: bytes) -> bytes:
    """Return a PNG from its filtered rows, for kinds that Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def decoded(content: bytes, background: str = "#ffffff") -> Image.Image:
    image = decode(content, max_pixels=MOST, background=background)
    assert image.mode == "RGB"
    return image


def corner(content: bytes, background: str = "#ffffff") -> tuple[int, ...]:
    pixel = decoded(content, background).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def code_of(content: bytes, max_pixels: int = MOST) -> str:
    problem = inspect(content, max_pixels=max_pixels).problem
    assert problem is not None
    return problem.code


def near(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 2) -> bool:
    return max(abs(one - other) for one, other in zip(found, expected, strict=True)) <= tolerance


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_formats_without_loss(format_: str) -> None:
    content = encoded(Image.fromarray(NOISE), format_)
    assert np.array_equal(np.asarray(decoded(content)), NOISE)
    facts = inspect(content, max_pixels=MOST)
    assert (facts.width_px, facts.height_px, facts.format, facts.problem) == (128, 96, format_, None)


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "AVIF", "JPEG2000", "GIF"])
def test_formats_with_loss(format_: str) -> None:
    content = encoded(Image.new("RGB", (64, 48), (200, 60, 40)), format_)
    assert near(corner(content), (200, 60, 40), 6)
    assert inspect(content, max_pixels=MOST).format == format_


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_rotated_by_their_exif_orientation(format_: str, orientation: int) -> None:
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32], upright[:16, 32:], upright[16:, :32] = RED, GREEN, BLUE
    as_stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format_, {})
    content = encoded(Image.fromarray(np.ascontiguousarray(as_stored)), format_, exif=exif, **options)
    found = np.asarray(decoded(content)).astype(int)
    assert found.shape == (32, 64, 3)
    assert np.abs(found - upright).max() <= 4
    facts = inspect(content, max_pixels=MOST)
    assert (facts.width_px, facts.height_px) == (64, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_a_broken_exif_block_does_not_lose_the_picture() -> None:
    content = encoded(Image.new("RGB", (64, 64), RED), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert inspect(content, max_pixels=MOST).problem is None


def test_transparency_is_laid_on_the_chosen_colour() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    for format_ in ("PNG", "WEBP", "TIFF", "AVIF"):
        assert near(corner(encoded(clear, format_), "#0000ff"), BLUE), format_
    half = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG")
    assert near(corner(half), (255, 127, 127))
    assert corner(encoded(Image.new("LA", (8, 8), (0, 0)), "PNG"), "#00ff00") == GREEN
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([*RED, *GREEN])
    assert corner(encoded(palette, "PNG")) == GREEN
    assert corner(encoded(palette, "PNG", transparency=1), "#0000ff") == BLUE
    assert corner(encoded(palette, "PNG", transparency=b"\xff\x00"), "#0000ff") == BLUE
    assert corner(encoded(palette, "GIF", transparency=1), "#0000ff") == BLUE
    assert corner(encoded(Image.new("RGB", (8, 8), GREEN), "PNG", transparency=GREEN), "#0000ff") == BLUE
    assert corner(encoded(Image.new("L", (8, 8), 7), "PNG", transparency=7), "#0000ff") == BLUE


def test_grey_black_and_white_and_other_colour_spaces() -> None:
    assert corner(encoded(Image.new("L", (8, 8), 77), "PNG")) == (77, 77, 77)
    assert corner(encoded(Image.new("1", (8, 8), 1), "PNG")) == WHITE
    assert near(corner(encoded(Image.new("YCbCr", (8, 8), (76, 85, 255)), "TIFF")), RED, 3)
    for lightness, seen in ((0, BLACK), (255, WHITE)):
        assert near(corner(encoded(Image.new("LAB", (8, 8), (lightness, 128, 128)), "TIFF")), seen)


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk(format_: str) -> None:
    for ink, seen in (((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), BLACK)):
        assert near(corner(encoded(Image.new("CMYK", (16, 16), ink), format_)), seen, 4)


def test_sixteen_bits_are_scaled_not_cut() -> None:
    ramp = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    for format_ in ("PNG", "TIFF"):
        found = np.asarray(decoded(encoded(Image.fromarray(ramp), format_)))
        assert found[0, :, 0].tolist() == [0, 1, 128, 255], format_
    pgm = b"P5 4 1 65535 " + ramp.astype(">u2").tobytes()
    assert np.asarray(decoded(pgm))[0, :, 0].tolist() == [0, 1, 128, 255]
    colour = png(1, 1, bits=16, colour=2, rows=b"\0" + struct.pack(">3H", 65535, 128 * 257, 0))
    assert near(corner(colour), (255, 128, 0), 1)
    clear = png(1, 1, bits=16, colour=6, rows=b"\0" + struct.pack(">4H", 65535, 65535, 0, 0))
    assert near(corner(clear, "#0000ff"), BLUE, 1)


def test_floats_and_what_is_no_number() -> None:
    ramp = np.array([[0, 0.5, 1]], np.float32)
    for scale in (1, 255, 65535):
        found = np.asarray(decoded(encoded(Image.fromarray(ramp * np.float32(scale)), "TIFF")))
        assert found[0, :, 0].tolist() == [0, 128, 255]
    wrong = encoded(Image.fromarray(np.array([[np.nan]], np.float32)), "TIFF")
    assert code_of(wrong) == "picture_not_finite"


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame(format_: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format_ == "WEBP" else {}
    content = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(content)) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert corner(content) == RED


def swapped_profile() -> bytes:
    """Return an sRGB profile with its red and green primaries exchanged."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return plain.replace(b"rXYZ", b"tmp_", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp_", b"gXYZ", 1)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_embedded_profile_is_converted_to_srgb(format_: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format_, {})
    content = encoded(Image.new("RGB", (16, 16), RED), format_, icc_profile=swapped_profile(), **options)
    assert near(corner(content), GREEN, 6)


def test_profiles_with_transparency_and_those_that_do_not_fit() -> None:
    profile = swapped_profile()
    assert near(corner(encoded(Image.new("RGBA", (8, 8), (*RED, 255)), "PNG", icc_profile=profile)), GREEN)
    assert near(corner(encoded(Image.new("RGBA", (8, 8), (*RED, 0)), "PNG", icc_profile=profile), "#0000ff"), BLUE)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([*RED, *GREEN])
    assert near(corner(encoded(palette, "PNG", icc_profile=profile)), GREEN)
    assert corner(encoded(Image.new("L", (8, 8), 77), "PNG", icc_profile=profile)) == (77, 77, 77)
    assert corner(encoded(Image.new("RGB", (8, 8), RED), "PNG", icc_profile=b"no profile")) == RED


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_truncated_files_are_found(format_: str) -> None:
    whole = encoded(Image.fromarray(NOISE), format_)
    for share in (0.02, 0.3, 0.6, 0.9):
        facts = inspect(whole[: int(len(whole) * share)], max_pixels=MOST)
        assert facts.problem is not None
        assert facts.problem.code in (
            "picture_damaged",
            "picture_header_damaged",
            "picture_header_cut",
            "picture_is_text",
        ), share
        assert len(facts.digest) == 64


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_change_of_a_byte_crashes() -> None:
    rng = np.random.default_rng(1)
    for format_ in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encoded(Image.fromarray(NOISE[:24, :24]), format_)
        for _ in range(60):
            changed = bytearray(whole)
            changed[int(rng.integers(min(200, len(whole))))] ^= int(rng.integers(1, 256))
            facts = inspect(bytes(changed), max_pixels=MOST)
            assert bool(facts.problem) != bool(facts.width_px)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty: 0 bytes"),
        (b"<html>not found</html>", "text, not a picture; it starts with <html>not found<"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "text, not a picture; it starts with %!PS-Adobe-3.0 E"),
        (b"\x89PNG\r\n\x1a\n", "a PNG file whose header is damaged or cut short"),
        (b"\xff\xd8\xff", "a JPEG file whose header is damaged or cut short"),
        (b"no", "text, not a picture; it starts with no"),
        (bytes(range(200, 256)), "not a picture of a supported format; convert it to PNG or JPEG"),
        (b"PK\x03\x04 and more", "not a picture of a supported format; convert it to PNG or JPEG"),
    ],
)
def test_content_that_is_not_a_picture(content: bytes, sentence: str) -> None:
    facts = inspect(content, max_pixels=MOST)
    assert sentence in str(facts.problem)
    with pytest.raises(DataError) as refused:
        decode(content, max_pixels=MOST)
    assert refused.value.problems == (facts.problem,)


def test_bombs_are_refused_by_what_they_claim() -> None:
    bomb = png(60_000, 60_000, bits=8, colour=2, rows=bytes(1000))
    assert "claims 60000 x 60000 pixels, more than 10,000,000" in str(inspect(bomb, max_pixels=MOST).problem)
    assert code_of(b"\x89PNG" + bytes(2000), max_pixels=100) == "picture_file_too_large"


def test_our_limit_holds_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    content = encoded(Image.fromarray(NOISE), "PNG")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(content))
    assert inspect(content, max_pixels=MOST).problem is None
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_content_against_ending() -> None:
    assert is_promised("a.JPG", "JPEG")
    assert is_promised("a.b.jpeg", "JPEG")
    assert not is_promised("a.jpg", "PNG")


def test_integers_of_32_bits_that_use_8_are_not_black() -> None:
    ramp = np.arange(256, dtype=np.int32).reshape(16, 16)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "TIFF")
    decoded = np.asarray(decode(file.getvalue(), max_pixels=10**6))
    assert (decoded[..., 0] == ramp).all()
    dark = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint16)).save(dark, "PNG")
    assert np.asarray(decode(dark.getvalue(), max_pixels=10**6)).max() == 1
