"""The things in the demo dataset, and those held out to test the transfer of the style.

All are concepts of the embedded model, spread over its subjects.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing: its drawing's name in Noto emoji and the words for it, as the embedded model learnt them."""

    slug: str
    name_en: str
    article_en: str
    """Article with its space; empty before a plural."""
    name_zh: str
    measure_zh: str
    """Measure word; empty where neither of the embedded model's two fits."""


def _things(article: str, measure: str, *rows: tuple[str, str, str]) -> tuple[Thing, ...]:
    return tuple(
        Thing(slug=slug, name_en=name_en, article_en=article, name_zh=name_zh, measure_zh=measure)
        for slug, name_en, name_zh in rows
    )


TRAINED = (
    *_things(
        "a ", "一只",
        ("dog", "dog", "狗"), ("rabbit", "rabbit", "兔子"), ("tiger", "tiger", "老虎"), ("monkey", "monkey", "猴子"),
        ("panda", "panda", "熊猫"), ("bear", "bear", "熊"), ("penguin", "penguin", "企鹅"), ("duck", "duck", "鸭子"),
        ("bird", "bird", "鸟"), ("parrot", "parrot", "鹦鹉"), ("frog", "frog", "青蛙"), ("turtle", "turtle", "龟"),
        ("crab", "crab", "蟹"), ("snail", "snail", "蜗牛"), ("butterfly", "butterfly", "蝴蝶"), ("honeybee", "bee", "蜜蜂"),
    ),
    *_things("an ", "一只", ("owl", "owl", "猫头鹰"), ("octopus", "octopus", "章鱼")),
    *_things("a ", "", ("horse", "horse", "马"), ("snake", "snake", "蛇"), ("whale", "whale", "鲸鱼"), ("shark", "shark", "鲨鱼")),
    *_things(
        "a ", "一个",
        ("banana", "banana", "香蕉"), ("pineapple", "pineapple", "菠萝"), ("pear", "pear", "梨"), ("lemon", "lemon", "柠檬"),
        ("strawberry", "strawberry", "草莓"), ("watermelon", "watermelon", "西瓜"), ("carrot", "carrot", "胡萝卜"),
        ("hamburger", "hamburger", "汉堡"), ("pizza", "pizza", "披萨"), ("birthday-cake", "birthday cake", "生日蛋糕"),
        ("doughnut", "donut", "甜甜圈"),
    ),
    *_things("", "", ("cherries", "cherries", "樱桃"), ("grapes", "grapes", "葡萄")),
    *_things("an ", "一个", ("soft-ice-cream", "ice cream cone", "冰淇淋")),
    *_things(
        "a ", "",
        ("bus", "bus", "公交车"), ("tractor", "tractor", "拖拉机"), ("motorcycle", "motorcycle", "摩托车"),
        ("locomotive", "steam train", "蒸汽火车"), ("helicopter", "helicopter", "直升机"), ("rocket", "rocket", "火箭"),
        ("ship", "ship", "船"),
    ),
    *_things("an ", "", ("airplane", "airplane", "飞机")),
    *_things(
        "a ", "",
        ("sunflower", "sunflower", "向日葵"), ("tulip", "tulip", "郁金香"), ("evergreen-tree", "pine tree", "松树"),
        ("palm-tree", "palm tree", "棕榈树"), ("cactus", "cactus", "仙人掌"), ("maple-leaf", "maple leaf", "枫叶"),
    ),
    *_things("an ", "一个", ("alarm-clock", "alarm clock", "闹钟")),
    *_things(
        "a ", "一个",
        ("camera", "camera", "相机"), ("television", "television", "电视机"), ("bell", "bell", "铃铛"), ("crown", "crown", "皇冠"),
        ("balloon", "balloon", "气球"), ("wrapped-gift", "gift", "礼物"), ("light-bulb", "light bulb", "灯泡"),
        ("hammer", "hammer", "锤子"), ("star", "star", "星星"), ("teapot", "teapot", "茶壶"),
    ),
    *_things("a ", "", ("top-hat", "top hat", "礼帽")),
    *_things("", "", ("scissors", "scissors", "剪刀"), ("glasses", "glasses", "眼镜")),
)  # fmt: skip
"""Things in the dataset, in this order, captioned in English and Chinese in turn."""

HELD_OUT = (
    *_things("a ", "一只", ("cat", "cat", "猫")),
    *_things("an ", "一只", ("elephant", "elephant", "大象")),
    *_things("a ", "", ("fish", "fish", "鱼"), ("automobile", "car", "汽车"), ("sailboat", "sailboat", "帆船")),
    *_things("a ", "一个", ("red-apple", "red apple", "红苹果"), ("mushroom", "mushroom", "蘑菇"), ("house", "house", "房子")),
    *_things("a ", "", ("rose", "rose", "玫瑰"), ("guitar", "guitar", "吉他"), ("key", "key", "钥匙")),
    *_things("an ", "", ("umbrella", "umbrella", "伞")),
)  # fmt: skip
"""Things for validation prompts, never in the dataset."""

WIDE = frozenset({"turtle", "duck", "glasses", "bus", "tractor", "motorcycle", "locomotive", "ship"})
"""Things on a wide canvas, so that the dataset fills two buckets."""
