"""Encodings of captions: unambiguous ones are read, ambiguous ones are rejected."""

import codecs

import pytest

from longcat.errors import DataError
from trainer.config.reading.text_encoding import DecodedText, decode_text

WESTERN = [
    "a child’s red ball", "a piñata", "café on a street", "créée à l’été", "naïve façade, “quoted” — dash…",
    "à la carte", "über", "Ångström smörgåsbord", "£5 note", "20°C", "½ cup of crème brûlée", "©2020 Zoë", "São João",
    "l'œuvre d’art", "¿Qué?", "A—B", "“hello”", "Müller-Straße 5", "Ñandú", "ÉCOLE",
]  # fmt: skip
CHINESE = [
    "一只猫", "猫", "a picture of 一只猫", "一个红苹果", "a sign 福", "一只猫，蓝色背景",
    "穿着旗袍的女孩站在桥上", "中", "李镕基", "灯笼", "水墨画风格，一只猫", "“你好”", "第１章",
    "α射线下的骨头", "她穿着一件T恤", "鸢尾花", "filename,caption\ncat.png,一只猫",
]  # fmt: skip
TRADITIONAL = ["一隻貓", "一個女孩", "紅色的蘋果"]


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        *((text, "cp1252", "Windows-1252") for text in WESTERN),
        *((text, "gb18030", "GB18030") for text in CHINESE),
        *((text, "gbk", "GB18030") for text in CHINESE),
        *((text, "big5", "Big5") for text in TRADITIONAL),
    ],
)
def test_an_encoding_that_alone_explains_the_bytes_is_taken(text: str, codec: str, name: str) -> None:
    assert decode_text(text.encode(codec)) == DecodedText(text=text, guessed=name)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("猫がいる", "shift_jis"), ("Привет мир", "cp1251"), ("고양이", "euc-kr"), ("빨간 사과", "euc-kr"),
        ("żółw", "cp1250"),
        ("příliš žluťoučký", "cp1250"), ("kůň", "cp1250"), ("kız çocuğu", "cp1254"), ("a child’s red ball", "mac_roman"),
        ("café on a street", "mac_roman"), ("“hi”", "mac_roman"), ("蘑菇", "gb18030"), ("貓", "big5"),
        ("猫", "shift_jis"), ("前", "shift_jis"), ("有", "shift_jis"), ("赤いリンゴ", "euc_jp"), ("東京タワー", "euc_jp"),
    ],
)  # fmt: skip
def test_bytes_in_doubt_are_refused(text: str, codec: str) -> None:
    with pytest.raises(DataError, match="its encoding is in doubt; save it as UTF-8"):
        decode_text(text.encode(codec))


@pytest.mark.parametrize(
    "text",
    [
        "~{R;V;C(~}", "\x1b$B%j%s%4\x1b(B", "childâ€™s ball", "cafÃ© street", "一个锟斤拷", "a \ufffd ball", "烫烫烫烫",
        "红色的球".encode().decode("latin-1"),
        "a red ball, 红色的球".encode("gb18030").decode("cp1252"),
        "红色的球".encode().decode("gb18030"),
        "一只猫坐在沙发上。".encode().decode("gb18030", "replace"),
        "a child’s ball, 草地".encode().decode("gb18030"),
        "a child’s ball".encode().decode("gb18030"),
    ],
)  # fmt: skip
def test_text_that_was_garbled_before_is_refused(text: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_text(text.encode())
    assert caught.value.problems[0].code == "text_garbled"


@pytest.mark.parametrize("text", [*WESTERN, *CHINESE, *TRADITIONAL, "🟫 你好", "don’t", "naïve—“x”"])
def test_utf_8_and_utf_16_are_detected_for_certain(text: str) -> None:
    for content in (text.encode(), codecs.BOM_UTF8 + text.encode(), text.encode("utf-16")):
        assert decode_text(content) == DecodedText(text=text)


@pytest.mark.parametrize("text", ["一只猫", "猫", "a picture of 一只猫"])
def test_gb18030_that_could_be_utf_8_is_detected(text: str) -> None:
    content = text.encode("gb18030")
    content.decode("utf-8")  # valid, but nonsense
    assert decode_text(content) == DecodedText(text=text, guessed="GB18030")


@pytest.mark.parametrize(
    "text",
    ["crème brûlée", "è una mela", "красное яблоко", "μήλο", "תפוח אדום", "×", "50 µm, naïve", "a café in Αθήνα"],
)
def test_other_scripts_in_utf_8_stay_what_they_are(text: str) -> None:
    assert decode_text(text.encode()) == DecodedText(text=text)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xff\xff\xff", "text_encoding_unknown"),
        (b"a\0b", "text_binary"),
        (codecs.BOM_UTF16_LE + b"a", "text_encoding_broken"),
    ],
)
def test_content_that_is_not_text(content: bytes, code: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_text(content)
    assert caught.value.problems[0].code == code
