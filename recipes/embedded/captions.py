"""Captions of a concept and a background colour, in English and Chinese, in many templates.

Some templates and background colours are held out for each concept: they are never trained with that concept, only with
others, and the evaluation draws on them.
"""

import random
import re
from dataclasses import dataclass

from recipes.embedded.concepts import Concept

LANGUAGES = ("en", "zh")


@dataclass(frozen=True, kw_only=True)
class Background:
    """A background colour and its names; ``rgb`` in 0..255."""

    name_en: str
    name_zh: str
    rgb: tuple[int, int, int]


BACKGROUNDS = (
    Background(name_en="white", name_zh="白色", rgb=(255, 255, 255)),
    Background(name_en="red", name_zh="红色", rgb=(220, 50, 50)),
    Background(name_en="orange", name_zh="橙色", rgb=(250, 150, 40)),
    Background(name_en="yellow", name_zh="黄色", rgb=(250, 220, 80)),
    Background(name_en="green", name_zh="绿色", rgb=(80, 180, 90)),
    Background(name_en="blue", name_zh="蓝色", rgb=(70, 120, 230)),
    Background(name_en="purple", name_zh="紫色", rgb=(150, 80, 200)),
    Background(name_en="pink", name_zh="粉色", rgb=(250, 160, 200)),
    Background(name_en="gray", name_zh="灰色", rgb=(150, 150, 150)),
    Background(name_en="black", name_zh="黑色", rgb=(20, 20, 20)),
)
"""Background colours. White is first: captions without a background mean white."""

_THING_TEMPLATES = {
    "en": (
        "{thing}", "a {thing}", "the {thing}", "one {thing}", "a picture of a {thing}", "a picture of {thing}",
        "an image of a {thing}", "{thing} emoji", "{thing} icon", "an icon of a {thing}", "a drawing of a {thing}",
        "draw a {thing}", "please draw a {thing}", "a cartoon {thing}", "a cute {thing}", "a photo of a {thing}",
        "generate an image of a {thing}", "an illustration of a {thing}", "a simple {thing} sticker",
        "could you please draw me a picture of a {thing}", "I would like a {thing}", "show me a {thing}",
    ),
    "zh": (
        "{thing}", "一个{thing}", "一只{thing}", "{thing}的图片", "一张{thing}的图片", "画一个{thing}", "请画{thing}",
        "请帮我画一个{thing}", "{thing}图标", "{thing}表情", "卡通{thing}", "可爱的{thing}", "生成{thing}的图像",
        "一幅{thing}的画", "一幅{thing}的插画", "我想要一张{thing}的图片", "给我看{thing}", "一张{thing}的照片",
    ),
}  # fmt: skip
_BACKGROUND_TEMPLATES = {
    "en": (
        "{thing} on a {colour} background", "{thing}, {colour} background", "{thing} with a {colour} background",
        "{thing} against a {colour} background", "{colour} background, {thing}", "{thing} on {colour}",
    ),
    "zh": (
        "{thing}，{colour}背景", "{colour}背景的{thing}", "{colour}背景，{thing}", "{thing}，背景是{colour}",
        "在{colour}背景上的{thing}", "{thing}, {colour}背景",
    ),
}  # fmt: skip
_COLOUR_SYNONYMS = {
    "gray": ("gray", "grey"),
    "粉色": ("粉色", "粉红色"),
    "红色": ("红色",),
    "purple": ("purple", "violet"),
}

HELD_OUT_TEMPLATES = 3
HELD_OUT_BACKGROUNDS = 2


def held_out_templates(concept_index: int, language: str) -> set[int]:
    """Return the templates never trained with this concept, by index; never the first two, the commonest prompts."""
    generator = random.Random(concept_index * 7 + LANGUAGES.index(language))
    return set(generator.sample(range(2, len(_THING_TEMPLATES[language])), HELD_OUT_TEMPLATES))


def held_out_backgrounds(concept_index: int) -> set[int]:
    """Return the background colours never trained with this concept, by index; never white."""
    return set(random.Random(concept_index * 13 + 5).sample(range(1, len(BACKGROUNDS)), HELD_OUT_BACKGROUNDS))


def training_backgrounds(concept_index: int) -> list[int]:
    """Return the background colours other than white that are trained with this concept, by index."""
    held_out = held_out_backgrounds(concept_index)
    return [i for i in range(1, len(BACKGROUNDS)) if i not in held_out]


def training_caption(
    concept: Concept, concept_index: int, background_index: int, language: str, rng: random.Random
) -> str:
    """Return a training caption: from any template that is not held out, sometimes with a synonym or a tag."""
    held_out = held_out_templates(concept_index, language)
    count = len(_THING_TEMPLATES[language])
    template = rng.choice([0, 1, *(i for i in range(count) if i not in held_out)])
    return caption(_a_name(concept, language, rng), background_index, language, template, rng)


def caption(name: str, background_index: int, language: str, template_index: int, rng: random.Random) -> str:
    """Return a caption of ``name`` on a background; ``rng`` chooses the background's phrasing, case and full stop."""
    text = _THING_TEMPLATES[language][template_index].format(thing=name)
    if background_index or rng.random() < 0.08:
        background = BACKGROUNDS[background_index]
        colour = background.name_en if language == "en" else background.name_zh
        colour = rng.choice(_COLOUR_SYNONYMS.get(colour, (colour,)))
        text = rng.choice(_BACKGROUND_TEMPLATES[language]).format(thing=text, colour=colour)
    if language == "zh":
        return text + "。" if rng.random() < 0.1 else text
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
    draw = rng.random()
    if draw < 0.15:
        text = text[0].upper() + text[1:]
    elif draw < 0.20:
        text = text.title()
    elif draw < 0.23:
        text = text.upper()
    return text + "." if rng.random() < 0.1 else text


def _a_name(concept: Concept, language: str, rng: random.Random) -> str:
    name, synonyms, tags = (
        (concept.name_en, concept.synonyms_en, concept.tags_en)
        if language == "en"
        else (concept.name_zh, concept.synonyms_zh, concept.tags_zh)
    )
    if synonyms and rng.random() < 0.35:
        return rng.choice(synonyms)
    tags = tuple(tag for tag in tags if tag != name)
    if tags and rng.random() < 0.08:
        return f"{name}, {rng.choice(tags)}" if language == "en" else f"{name}，{rng.choice(tags)}"
    return name
