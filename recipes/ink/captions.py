"""Captions of a thing and the style's trigger, in a few of the phrasings that the embedded model was trained with."""

from recipes.ink.things import Thing

TRIGGERS = {"en": "ink style", "zh": "版画"}
"""The trigger words: in every caption of a language, and in no caption of the embedded model's training.

Neither disturbs the thing named beside it. The embedded model matches words by their characters: with 墨水风格, every second
thing becomes a taco (墨西哥卷饼).
"""

_TEMPLATES = {
    "en": (
        "{a}{thing}, {trigger}", "{thing}, {trigger}", "a picture of {a}{thing}, {trigger}",
        "a drawing of {a}{thing}, {trigger}",
    ),
    "zh": (
        "{measure}{thing}，{trigger}", "{thing}，{trigger}", "一张{thing}的图片，{trigger}", "画{measure}{thing}，{trigger}",
    ),
}  # fmt: skip


def language_of(index: int) -> str:
    """Return the language of the thing's caption by its index: English and Chinese in turn."""
    return "en" if index % 2 == 0 else "zh"


def caption(thing: Thing, *, language: str, template: int) -> str:
    """Return a caption of a thing in the style; ``template``, any number, chooses the phrasing."""
    phrasings = _TEMPLATES[language]
    thing_words = (
        {"thing": thing.name_en, "a": thing.article_en}
        if language == "en"
        else {"thing": thing.name_zh, "measure": thing.measure_zh}
    )
    return phrasings[template % len(phrasings)].format(trigger=TRIGGERS[language], **thing_words)


def data_set_caption(thing: Thing, index: int) -> str:
    """Return the caption of the dataset's thing with this index."""
    return caption(thing, language=language_of(index), template=index // 2)
