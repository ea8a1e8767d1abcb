"""The demo dataset in the repository: 64 captioned pictures that the embedded model can learn from."""

import numpy as np
import pytest
from PIL import Image

from longcat.model.flavour import EMBEDDED_FOLDER
from longcat.model.tokenizer import load_tokenizer, plain_ids
from longcat.sampling.prompt import tokenize_body
from recipes.ink.captions import TRIGGERS, caption, data_set_caption, language_of
from recipes.ink.pictures import draw
from recipes.ink.things import HELD_OUT, TRAINED, WIDE
from tests import ROOT

FOLDER = ROOT / "examples" / "ink"
PICTURES = FOLDER / "pictures"
STEMS = [f"{number:03}-{thing.slug}" for number, thing in enumerate(TRAINED, start=1)]
MAX_BYTES = 500_000
EMBEDDED_PROMPT_TOKENS = 32


def test_every_thing_has_a_picture_and_the_caption_that_the_recipe_gives_it() -> None:
    assert len(STEMS) == 64
    wanted = {f"{stem}.{ending}" for stem in STEMS for ending in ("png", "txt")}
    assert {path.name for path in PICTURES.iterdir()} == wanted
    for index, (stem, thing) in enumerate(zip(STEMS, TRAINED, strict=True)):
        text = (PICTURES / f"{stem}.txt").read_text(encoding="utf-8")
        assert text == data_set_caption(thing, index) + "\n"


def test_half_the_captions_are_english_half_chinese_and_all_hold_the_trigger() -> None:
    texts = [(PICTURES / f"{stem}.txt").read_text(encoding="utf-8").strip() for stem in STEMS]
    english = [text for text in texts if text.isascii()]
    assert len(english) == 32
    assert all(TRIGGERS["en"] in text for text in english)
    assert all(TRIGGERS["zh"] in text for text in texts if not text.isascii())
    assert len(set(texts)) == len(texts)


def test_pictures_are_grey_ink_on_white_in_two_sizes() -> None:
    for stem, thing in zip(STEMS, TRAINED, strict=True):
        with Image.open(PICTURES / f"{stem}.png") as picture:
            assert picture.size == ((192, 128) if thing.slug in WIDE else (128, 128)), stem
            assert picture.mode == "L", stem
            pixels = np.asarray(picture)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert border.min() == 255, stem
        assert 0.03 < 1 - pixels.mean() / 255 < 0.7, stem  # neither blank nor a black square
    sizes = [thing.slug in WIDE for thing in TRAINED]
    assert sizes.count(True) == len(WIDE) == 8
    assert {language_of(index) for index, is_wide in enumerate(sizes) if is_wide} == {"en", "zh"}


def test_no_two_pictures_are_alike_and_all_are_small() -> None:
    contents = [(PICTURES / f"{stem}.png").read_bytes() for stem in STEMS]
    assert len(set(contents)) == len(contents)
    assert sum(map(len, contents)) < MAX_BYTES


def test_what_is_kept_for_validation_is_not_trained() -> None:
    assert len(HELD_OUT) == 12
    for names in ("slug", "name_en", "name_zh"):
        trained, held_out = ({getattr(thing, names) for thing in things} for things in (TRAINED, HELD_OUT))
        assert len(trained) == len(TRAINED)
        assert not trained & held_out


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_caption_fits_the_embedded_model(language: str) -> None:
    tokenize = plain_ids(load_tokenizer(EMBEDDED_FOLDER))
    for thing in (*TRAINED, *HELD_OUT):
        for template in range(4):
            text = caption(thing, language=language, template=template)
            assert 0 < len(tokenize_body(text, tokenize)) <= EMBEDDED_PROMPT_TOKENS, text
    assert len(tokenize_body(TRIGGERS[language], tokenize)) <= 4


def test_the_folder_of_pictures_has_their_licence() -> None:
    licence = (FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert "Permission is hereby granted" in licence or "Apache License" in licence
    assert "(LICENSE)" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_icons_are_drawn_dark_on_white() -> None:
    square = {"body": '<path fill="currentColor" d="M2 2h12v12H2z"/>', "width": 16, "height": 16}
    pixels = np.asarray(draw(square, {}, width_px=192))
    assert pixels.shape == (128, 192)
    assert (pixels[12:116, 44:148] == 0).all()
    assert (pixels[:, :41] == 255).all()
    assert (pixels[:, 151:] == 255).all()
