"""What trainer and service say, retold in Chinese: each form is the source's, and no reason of a dataset is left out."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.reasons import Reasons, load_reasons

ROOT = Path(__file__).parent.parent
CLOSED = (
    "trainer/dataset.py",
    "trainer/caption_files.py",
    "trainer/pictures.py",
    "trainer/advice.py",
    "studio/uploads.py",
)
"""Where files of a dataset get their reasons, and datasets their warnings: all of them are to be retold."""
NOT_SHOWN = (
    "{} {}; it was there when the data was scanned: start again",
    "{} has changed since the data was scanned; start again",
)
"""A training's, not a scan's."""
KINDS = {"DataError", "_drop"}


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text of a program, with ``{}`` where an f-string has values."""
    for node in ast.walk(tree):
        if (text := text_of(node)) is not None:
            yield text


def text_of(node: ast.AST) -> str | None:
    match node:
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
        case ast.Constant(value=str(text)):
            return text
    return None


def reason_of(node: ast.AST) -> str | None:
    """What is raised or dropped for, or warned of."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[*_, said]) if name in KINDS:
            return text_of(said)
        case ast.Yield(value=ast.AST() as said):
            return text_of(said)
    return None


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def chinese() -> Reasons:
    return load_reasons("zh")


def test_every_form_is_in_the_source(chinese: Reasons) -> None:
    said = {
        text
        for package in ("trainer", "studio", "service", "longcat")
        for path in (ROOT / package).rglob("*.py")
        for text in texts(parsed(path))
    }
    gone = [
        form
        for form in chinese.forms
        if not all(any(part in text for text in said) for part in ([form] if form in said else form.split("; ")))
    ]
    assert gone == []


def test_a_form_and_its_sentence_have_the_same_values_but_for_what_is_left_out_on_purpose(chinese: Reasons) -> None:
    for form, sentence in chinese.forms.items():
        values = [f"<{i}>" for i in range(form.count("{}"))]
        assert "{" not in sentence.format(*values), form  # and no IndexError


@pytest.mark.parametrize("path", CLOSED)
def test_every_reason_for_which_a_file_is_dropped_is_told(chinese: Reasons, path: str) -> None:
    for node in ast.walk(parsed(ROOT / path)):
        text = reason_of(node)
        if text is not None and text not in NOT_SHOWN and any(map(str.isalpha, text)):
            assert chinese.retell(text.format(*["7"] * text.count("{}"))), text


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("is empty: 0 bytes", "文件是空的（0 字节）"),
        ("has no caption: a.txt is no text: it holds zero bytes; save it as UTF-8", "没有描述：a.txt 不是文本"),
        ("is 20 x 10 px: 10 is less than minimum_image_size 64", "尺寸为 20 × 10 像素：10 小于 minimum_image_size（64）"),
        ("notes.safetensors holds no LoRA weights", "notes.safetensors：不含 LoRA 权重"),
        ("no caption is Chinese: prompts in Chinese may hardly show what is learnt; the model reads both, so give Chinese "
         "captions too, as further lines of the captions or for some pictures", "没有中文描述：用中文提示词时"),
    ],
)  # fmt: skip
def test_values_stay_and_sentences_within_sentences_are_told_too(chinese: Reasons, said: str, told: str) -> None:
    assert (chinese.retell(said) or "").startswith(told)


def test_what_has_no_form_stays_as_it_is(chinese: Reasons) -> None:
    assert chinese.retell("the moon is full") is None
    assert load_reasons("en").retell("is empty: 0 bytes") is None
