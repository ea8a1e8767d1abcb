"""Detection of a text file's encoding: UTF-8, else Chinese or Western European. No torch.

A wrong guess would train on nonsense ("a child’s" in Windows-1252 is "a child抯" in GBK), so a text that is plausible in
more than one encoding is rejected.
"""

import codecs
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from longcat.errors import DataError

_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_CHINESE = re.compile(
    r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef\u2010-\u2026·\u03b1-\u03c9\u2460-\u2473\u2160-\u216b×÷°℃±]"
)
"""Chinese characters, and the punctuation and signs between them."""
_COMMON = frozenset(
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多定行学法所民得经十三之进"
    "着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各"
    "重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解问意建月公无系军很情者最立代想已通并提直题程展五果料象员位入常文总次品式"
    "活设及管特件长求老头基边流路级少图山接知较将见计别她手角期根运指几九区强放西被干做先回取处南给色光门保北造百热七海口东导器压世金油交受"
    "什六收清己美再转更单风切打白花带安场身车真具万每目走声完类八名才张马话米整空今传土步群广石林叫观织装影低音书布容儿近千半青支史便团市何"
    "称太精号族写毛亲快院江型眼王格片状圆包火住满照红细引听铁字画像景背格照孩男女站坐穿戴拿猫狗鸟鱼马牛羊虎龙兔树草叶云雪雨湖河桥城楼房屋窗"
    "蓝绿黄紫橙灰粉黑棕彩衣服裙帽鞋包脸发笑童少年父母婴苹梨香蕉杯碗盘茶咖啡饭面包船飞星球夜晚晨阳亮暗古现代未来素描油彩版卡通写实摄影特近远福灯笼"
)
"""Common characters, those of captions above all: most of a Chinese text, and few of one that is decoded wrongly."""
_SCRIPTS = {"LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "ARMENIAN", "SYRIAC", "THAANA", "NKO"}
"""Scripts whose characters have two bytes in UTF-8, by the first word of Unicode's character names."""
_LETTERS = frozenset("àáâãäåæçèéêëíîïñóôöøœúûüßÿÀÁÂÃÄÅÆÇÈÉÊËÍÎÏÑÓÔÖØŒÚÛÜ")
"""Letters of Western European words in English text. Others are likelier to be of another encoding."""
_TYPOGRAPHY = frozenset("’‘“”–—…•€£©®™°«»¿¡·×½¼¾²³\u00a0")
_BETWEEN_LETTERS = frozenset("’‘–—…·")
"""Marks that may stand between two letters."""
_LOST = re.compile("\ufffd|锟斤拷|烫烫烫|\x1b[$(]|~\\{[!-~]+~\\}")
"""Traces of text that was decoded wrongly and saved, its characters lost; and of ISO-2022 and HZ, which look like ASCII."""
_NOT_ASCII_RUN = re.compile(r"[^\x00-\x7f]+")


@dataclass(frozen=True, kw_only=True)
class DecodedText:
    """A text, and the encoding that was guessed for it; None where the file says it or it is UTF-8."""

    text: str
    guessed: str | None = None


def decode_text(content: bytes) -> DecodedText:
    """Decode a text file. Raises ``DataError`` if no encoding explains it, several do, or its characters are lost."""
    decoded = _decoded(content)
    if _is_garbled(decoded.text):
        raise _garbled()
    return decoded


def _decoded(content: bytes) -> DecodedText:
    for bom, encoding in _BOMS.items():
        if content.startswith(bom):
            try:
                return DecodedText(text=content.decode(encoding))
            except UnicodeDecodeError as error:
                raise DataError(
                    "text_encoding_broken",
                    "not {encoding} at byte {position}, though it starts so",
                    remedy="save it as UTF-8",
                    encoding=encoding,
                    position=error.start,
                ) from error
    if b"\0" in content:
        raise DataError("text_binary", "not text: it has zero bytes", remedy="save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return _guessed(content)
    if is_rather_gb18030(text) and not _is_garbled(text):
        return DecodedText(text=content.decode("gb18030"), guessed="GB18030")
    return DecodedText(text=text)


def _guessed(content: bytes) -> DecodedText:
    """Decode by the only encoding that explains the text.

    charset-normalizer's statistics are for longer texts: it decodes one in five of the captions in
    ``tests/trainer/config/reading/test_text_encoding.py``.
    """
    likely = []
    for encoding, (name, is_likely) in _ENCODINGS.items():
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if is_likely(text):
            likely.append(DecodedText(text=text, guessed=name))
    if len(likely) != 1:
        raise DataError("text_encoding_unknown", "not UTF-8, and its encoding is in doubt", remedy="save it as UTF-8")
    return likely[0]


def _is_gb18030(text: str) -> bool:
    """Return whether text is Chinese. Common characters tell it from Korean, whose bytes are Chinese ones at random."""
    characters = _chinese_characters(text)
    return _share_of_common(characters) > 0.25


def _is_big5(text: str) -> bool:
    """Return whether text is Chinese in Big5 and cannot be GB18030, which wins where both explain the bytes."""
    characters = _chinese_characters(text)
    try:
        if len(characters) < 2 or _is_gb18030(text.encode("big5").decode("gb18030")):
            return False
    except UnicodeDecodeError:
        pass
    common = sum(char in _COMMON for char in characters)
    return (
        common > 0.15 * len(characters)
        and all(0xA4 <= char.encode("big5")[0] <= 0xC6 for char in characters)
        and not _has_kana(text.encode("big5"))
    )


def _has_kana(content: bytes) -> bool:
    """Return whether bytes are Japanese in EUC-JP: 赤いリンゴ is 乾中生風打 in Big5."""
    try:
        return bool(re.search("[\u3040-\u30ff]{2}", content.decode("euc_jp")))
    except UnicodeDecodeError:
        return False


def _chinese_characters(text: str) -> list[str]:
    """Return the Chinese characters of a text; none if it has other characters beyond ASCII than Chinese texts have."""
    beyond = [char for char in text if not char.isascii()]
    return [char for char in beyond if char >= "\u3400"] if all(map(_CHINESE.match, beyond)) else []


def _is_western(text: str) -> bool:
    """Return whether text is of words with single accented letters ("créée" has two), and of typographic marks."""
    if not _has_paired_quotes(text) or re.match("[–—•…]\\S", text):  # 猫 and 有 in Shift-JIS are ”L and —L
        return False
    for run in _NOT_ASCII_RUN.finditer(text):
        before, after = text[max(0, run.start() - 1) : run.start()], text[run.end() : run.end() + 1]
        around = before + run[0] + after
        letters = [char for char in run[0] if char in _LETTERS]
        if len(letters) > 2 or not set(run[0]) <= _LETTERS | _TYPOGRAPHY:
            return False
        if letters and len(run[0]) > 1 and not re.search("[A-Za-z]", before + after):
            return False
        for left, char, right in zip(around, around[1:], around[2:], strict=False):
            if char in _TYPOGRAPHY - _BETWEEN_LETTERS and left.isalpha() and right.isalpha():
                return False
        if any(left.islower() and right.isupper() and right in _LETTERS for left, right in pairwise(around)):
            return False
    return True


def _has_paired_quotes(text: str) -> bool:
    """Return whether each “ and ‘ is closed, and each ” was opened or follows a number, as that of inches."""
    doubles = re.findall("(?<![0-9])”|“", text)
    return doubles == ["“", "”"] * (len(doubles) // 2) and text.count("‘") <= text.count("’")


_ENCODINGS: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "gb18030": ("GB18030", _is_gb18030), "big5": ("Big5", _is_big5), "cp1252": ("Windows-1252", _is_western),
}  # fmt: skip
"""The encodings that are guessed, their names, and whether a text decoded by one is plausible."""


def is_rather_gb18030(text: str) -> bool:
    """Return True if bytes that are valid UTF-8 are Chinese in GB18030: 一只猫 in GB18030 is һֻè in UTF-8.

    Only two-byte characters are ambiguous. Decoded wrongly, they mix scripts, or are accented letters without plain ones.
    """
    beyond = [char for char in text if not char.isascii()]
    if not beyond or max(beyond) > "\u07ff":
        return False
    scripts = _SCRIPTS & {unicodedata.name(char, "").partition(" ")[0] for char in beyond}
    if len(scripts) < 2 and not (scripts == {"LATIN"} and not re.search("[A-Za-z]", text)):
        return False
    try:
        otherwise = text.encode().decode("gb18030")
    except UnicodeDecodeError:
        return False
    return _share_of_common(_chinese_characters(otherwise)) > 0.5


def _is_garbled(text: str) -> bool:
    """Return whether a text was decoded with a wrong encoding and saved: its characters are lost, or are others' bytes."""
    return bool(_LOST.search(text)) or _is_read_as_western(text) or _is_utf8_read_as_gb18030(text)


def _is_read_as_western(text: str) -> bool:
    """Return whether a text is UTF-8 or GB18030 that was decoded as Windows-1252: "childâ€™s" is "child’s", ºìÉ« is 红色."""
    runs = _NOT_ASCII_RUN.findall(text)
    try:
        original = [b"".join(map(_western_byte, run)) for run in runs]
    except UnicodeEncodeError:
        return False
    return bool(runs) and (
        all(len(run) >= 2 and _can_decode(run, "utf-8") for run in original)
        or (
            not _is_western(text)
            and all(_can_decode(run, "gb18030") for run in original)
            and _is_gb18030("".join(run.decode("gb18030") for run in original))
        )
    )


def _western_byte(char: str) -> bytes:
    """Return the byte of a character in Windows-1252; programs read its five bytes without a character as controls."""
    return bytes([ord(char)]) if "\x80" <= char <= "\x9f" else char.encode("cp1252")


def _can_decode(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _is_utf8_read_as_gb18030(text: str) -> bool:
    """Return whether a text is UTF-8 that was decoded as GB18030: 绾㈣壊 is 红色, and "child鈥檚" is "child’s"."""
    if text.isascii() or not _can_decode(content := text.encode("gb18030", "replace"), "utf-8"):
        return False
    original = content.decode("utf-8")
    if chinese := _chinese_characters(original):
        return len(chinese) > 1 and _share_of_common(chinese) > _share_of_common(_chinese_characters(text))
    beyond = {char for char in original if not char.isascii()}
    return max(beyond, default="") >= "\u2000" and beyond <= _LETTERS | _TYPOGRAPHY


def _share_of_common(characters: Sequence[str]) -> float:
    return sum(char in _COMMON for char in characters) / max(1, len(characters))


def _garbled() -> DataError:
    return DataError(
        "text_garbled",
        "garbled: it was decoded with a wrong encoding before it was saved",
        remedy="write it again from its source",
    )
