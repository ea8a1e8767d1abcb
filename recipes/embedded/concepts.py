"""Concepts: an emoji drawn at 128 px with its names and tags in English and Chinese.

Pictures: ``@iconify-json/noto`` (Noto Emoji, Apache-2.0), drawn from SVG by resvg.
Names and tags: ``emojibase-data`` (MIT), from Unicode CLDR.
"""

import io
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

NOTO_PACKAGE = "@iconify-json/noto@1.2.9"
NAMES_PACKAGE = "emojibase-data@17.0.0"

CANVAS_PX = 128
SPRITE_PX = 108
"""Longest side of the icon, which leaves a margin of background colour."""

# emojibase subgroups whose pictures are things with a shape of their own.
SUBGROUPS = {
    *(11, 13, 14),  # costumes, monkeys, hearts
    *range(34, 49),  # animals, plants, food, dishes
    *(50, 51, 53, 54, 55, 56, 57, 58, 59),  # places, transport, time, sky
    *(60, 61, 62, 63, 64),  # festivities, medals, sport, games, crafts
    *(65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81),  # objects
}
FACES = {
    "grinning face", "face with tears of joy", "smiling face with halo", "smiling face with heart-eyes",
    "smiling face with sunglasses", "cowboy hat face", "crying face", "angry face", "sleeping face", "skull",
    "smiling face with horns", "nerd face", "exploding head",
}  # fmt: skip
# Pictures that are text, near copies of another one, or too detailed for 128 px.
LEFT_OUT = re.compile(
    r"o.clock|-thirty|button|Japanese|medium volume|low volume|with slash|oncoming|see-no|hear-no|"
    r"incoming|with arrow$|tray|flag$|lowered|linked|old key|mobile phone with|camera with|"
    r"woman.s (sandal|boot|clothes|hat)|man.s shoe|flat shoe|card index|file|page|ledger|notebook|notepad|calendar|"
    r"newspaper|bookmark|label|receipt|yen|euro|pound|fax|pager|videocassette|chart|ballot|not done|"
    r"e-mail|love letter|heart (exclamation|decoration)|mending|growing|beating|revolving|gibbous|quarter moon$|"
    r"waning|new moon$|waxing|behind (small|large|rain)|small airplane|departure|arrival|railway|tramway|cableway|"
    r"light rail|metro|tram|station|monorail|trolleybus|minibus|lorry|motorized|derelict|love hotel|office|hospital|"
    r"bank$|store|school|hotel|factory|wedding|Tokyo|convenience|brick|rock$|wood$|foggy|night|dusk|sunrise|sunset|"
    r"hot springs|barber|fog$|wind|milky|carp|wind chime|moon viewing|tanabata|pine dec|ticket|reminder|military medal|"
    r"1st|2nd|3rd|cricket game|field hockey|goal net|martial|running shirt|flag in hole|slot|flower playing|joker|"
    r"mahjong|performing|sewing|sari|kimono|briefs|one-piece|bikini|clutch|hiking|hair pick|rescue|prayer|level slider|"
    r"control knobs|score|low battery|trackball|optical|film frames|clapper|magnifying glass tilted right|tilted right|"
    r"diya|safety pin|locked with|hammer and|chains$|link$|broken chain|white cane|petri|adhesive|x-ray|elevator|"
    r"lotion|plunger|mouse trap|safety vest|lab coat|cut of meat|stuffed flatbread|tamale|falafel|oden|fondue|"
    r"pouring|sake|rice cracker|fish cake|rosette|wilted|microbe|paw prints|service dog|guide dog|cockroach|"
    r"landslide|construction|oil drum|motorway|bus stop|police car light|stop sign|seat$|high-speed|snowman without|"
    r"umbrella with|umbrella on|closed umbrella|dollar banknote|money with|black nib|fountain pen|round pushpin|"
    r"desktop|dvd|disk$|studio|video camera|musical notes|telephone receiver|roll of paper|razor|clamp|hook$|"
    r"mirror ball|nesting|disguised|rugby|with lightning and|gem exclamation|face in clouds|beverage box|mate$|"
    r"fork and knife with|hot pepper exclamation|leafless|empty nest|brown mushroom|root vegetable|shallow|canned|"
    r"takeout|moon cake|custard|honey pot exclamation|tumbler|clinking glasses|thermometer|level|stadium|classical|"
    r"polar exclamation|lungs|drop of blood|crutch|dna|fight|national park|desert$|beach|racing exclamation",
    re.IGNORECASE,
)
NEAR_COPIES = {
    "ogre", "speak-no-evil monkey", "heart with ribbon", "two hearts", "light blue heart", "grey heart",
    "brown heart", "leopard", "moose", "bison", "water buffalo", "boar", "two-hump camel", "mammoth", "rat",
    "chipmunk", "beaver", "badger", "skunk", "front-facing baby chick", "dodo", "wing", "black bird",
    "spouting whale", "white flower", "hyacinth", "herb", "nest with eggs", "flatbread", "bagel", "burrito",
    "pot of food", "curry rice", "shaved ice", "clinking beer mugs", "teacup without handle", "amphora", "mount fuji",
    "houses", "fountain", "cityscape", "playground slide", "roller coaster", "pickup truck", "sport utility vehicle",
    "manual wheelchair", "auto rickshaw", "kick scooter", "horizontal traffic light", "canoe", "speedboat", "ferry",
    "motor boat", "passenger ship", "stopwatch", "timer clock", "first quarter moon face", "last quarter moon face",
    "glowing star", "cloud with snow", "sparkler", "confetti ball", "softball", "flying disc", "ice hockey",
    "lacrosse", "heart suit", "knot", "thread", "goggles", "shorts", "folding hand fan", "thong sandal",
    "ballet shoes", "military helmet", "muted speaker", "loudspeaker", "postal horn", "trombone", "long drum",
    "film projector", "clipboard", "memo", "triangular ruler", "unlocked", "pick", "dagger", "alembic",
    "nut and bolt", "fly", "mosquito", "cricket", "worm", "chestnut", "ginger root", "blue book", "orange book",
    "pig nose", "house with garden", "orangutan", "satellite", "satellite antenna", "bento box", "electric plug",
    "roller skate", "carousel horse", "new moon face", "piñata", "pretzel", "straight ruler", "movie camera",
    "abacus", "cyclone", "lizard", "goat", "squid", "otter", "pea pod",
}  # fmt: skip

# Common names of things whose official name is longer or rarer.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "red apple": ("apple", "苹果"), "automobile": ("car", "red car", "汽车", "小汽车"), "soccer ball": ("football", "soccer", "足球"),
    "red heart": ("heart", "爱心", "红色的心"), "hamburger": ("burger", "汉堡"), "french fries": ("fries", "薯条"),
    "honeybee": ("bee", "蜜蜂"), "lady beetle": ("ladybug", "瓢虫"), "soft ice cream": ("ice cream cone", "冰淇淋"),
    "doughnut": ("donut", "甜甜圈"), "airplane": ("plane", "飞机"), "locomotive": ("steam train", "火车头"),
    "ear of corn": ("corn", "玉米"), "sheaf of rice": ("rice plant", "稻穗"), "wrapped gift": ("gift", "present", "礼物"),
    "teddy bear": ("toy bear", "泰迪熊"), "hot beverage": ("coffee", "cup of coffee", "咖啡"), "cat": ("kitty", "猫咪", "小猫"),
    "dog": ("puppy", "小狗", "狗狗"), "rabbit": ("bunny", "小兔子", "兔子"), "evergreen tree": ("pine tree", "松树"),
    "deciduous tree": ("tree", "大树", "树"), "crescent moon": ("moon", "月亮"), "flying saucer": ("UFO", "飞碟"),
    "sailboat": ("boat", "帆船"), "bicycle": ("bike", "自行车"), "motorcycle": ("motorbike", "摩托车"), "mobile phone": ("phone", "手机"),
    "laptop": ("computer", "notebook computer", "笔记本电脑", "电脑"), "television": ("TV", "电视"), "closed book": ("book", "书"),
    "light bulb": ("bulb", "灯泡"), "glasses": ("eyeglasses", "眼镜"), "t-shirt": ("shirt", "T恤"), "hatching chick": ("chick in an egg", "破壳小鸡"),
    "tropical fish": ("colourful fish", "热带鱼"), "fish": ("blue fish", "小鱼", "鱼"), "rose": ("red rose", "玫瑰花", "玫瑰"),
    "bus": ("big bus", "公交车", "公共汽车"), "house": ("home", "房子"), "fire engine": ("fire truck", "消防车"), "drum": ("drums", "鼓"),
    "musical keyboard": ("piano", "钢琴"), "party popper": ("party", "彩带"), "birthday cake": ("cake", "蛋糕"),
    "grapes": ("purple grapes", "葡萄"), "mouse": ("little mouse", "老鼠"), "ox": ("brown ox", "公牛"), "star": ("yellow star", "星星"),
    "Christmas tree": ("xmas tree", "圣诞树"), "steaming bowl": ("noodles", "ramen", "面条"), "watch": ("wristwatch", "手表"),
    "necktie": ("tie", "领带"), "gem stone": ("diamond", "钻石"), "high voltage": ("lightning bolt", "闪电"), "hot pepper": ("chili", "辣椒"),
    "wrench": ("spanner", "扳手"), "locked": ("padlock", "锁"), "ring": ("diamond ring", "戒指"), "money bag": ("bag of money", "钱袋"),
    "chicken": ("hen", "母鸡"), "unicorn": ("unicorn head", "独角兽"), "dragon": ("green dragon", "龙"), "panda": ("panda bear", "大熊猫", "熊猫"),
    "beer mug": ("beer", "啤酒"), "cooking": ("fried egg", "煎蛋"), "bread": ("loaf of bread", "面包"), "cheese wedge": ("cheese", "奶酪"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing that the model can draw."""

    hexcode: str
    name_en: str
    name_zh: str
    tags_en: tuple[str, ...]
    tags_zh: tuple[str, ...]
    synonyms_en: tuple[str, ...]
    synonyms_zh: tuple[str, ...]


def prepare(folder: Path) -> None:
    """Download both packages; write ``concepts.json`` and ``sprites.npy`` (N, 128, 128, 4), premultiplied uint8."""
    icons = json.loads(read_package(folder, NOTO_PACKAGE, "icons.json"))
    slugs = json.loads(read_package(folder, NOTO_PACKAGE, "chars.json"))
    english = json.loads(read_package(folder, NAMES_PACKAGE, "en/data.json"))
    chinese = {entry["hexcode"]: entry for entry in json.loads(read_package(folder, NAMES_PACKAGE, "zh/data.json"))}

    concepts: list[Concept] = []
    sprites: list[np.ndarray] = []
    taken: set[str | bytes] = set()
    for entry in english:
        slug = slugs.get(entry["hexcode"].replace("-FE0F", "").lower()) or slugs.get(entry["hexcode"].lower())
        if not _is_wanted(entry) or slug is None or slug not in icons["icons"]:
            continue
        concept = _concept(entry, chinese[entry["hexcode"]])
        sprite = draw_icon(icons["icons"][slug], icons)
        if concept.name_en in taken or concept.name_zh in taken or sprite.tobytes() in taken:
            continue
        taken |= {concept.name_en, concept.name_zh, sprite.tobytes()}
        concepts.append(concept)
        sprites.append(sprite)
    np.save(folder / "sprites.npy", np.stack(sprites))
    text = json.dumps([asdict(concept) for concept in concepts], ensure_ascii=False, indent=1)
    (folder / "concepts.json").write_text(text + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[list[Concept], np.ndarray]:
    """Read the concepts and their sprites, (N, 128, 128, 4), premultiplied uint8."""
    rows = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
    fields: list[dict[str, Any]] = [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    concepts = [Concept(**field) for field in fields]
    return concepts, np.load(folder / "sprites.npy")


def _is_wanted(entry: dict[str, Any]) -> bool:
    label = entry["label"]
    if label in FACES:
        return True
    return entry.get("subgroup") in SUBGROUPS and label not in NEAR_COPIES and not LEFT_OUT.search(label)


def _concept(english: dict[str, Any], chinese: dict[str, Any]) -> Concept:
    name = english["label"].replace("’", "'").replace("“", "").replace("”", "")
    synonyms = SYNONYMS.get(name, ())
    return Concept(
        hexcode=english["hexcode"],
        name_en=name,
        name_zh=chinese["label"],
        tags_en=tuple(english.get("tags", ())),
        tags_zh=tuple(chinese.get("tags", ())),
        synonyms_en=tuple(s for s in synonyms if s.isascii()),
        synonyms_zh=tuple(s for s in synonyms if not s.isascii()),
    )


def draw_icon(icon: dict[str, Any], icons: dict[str, Any]) -> np.ndarray:
    """Draw one icon centred on a transparent canvas: (128, 128, 4), premultiplied uint8."""
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
        f'width="512" height="512">{icon["body"]}</svg>'
    )
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    drawn = drawn.crop(drawn.getbbox())
    scale = SPRITE_PX / max(drawn.size)
    size = max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))
    premultiplied = np.asarray(drawn, dtype=np.float32)
    premultiplied = np.concatenate([premultiplied[..., :3] * premultiplied[..., 3:] / 255, premultiplied[..., 3:]], -1)
    planes = [Image.fromarray(premultiplied[..., i]).resize(size, Image.Resampling.BOX) for i in range(4)]
    canvas = np.zeros((CANVAS_PX, CANVAS_PX, 4), np.uint8)
    top, left = (CANVAS_PX - size[1]) // 2, (CANVAS_PX - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = np.stack([np.asarray(p) for p in planes], -1).round()
    return canvas


def read_package(folder: Path, package: str, member: str) -> bytes:
    """Read one file of an npm package, downloading the package once with ``npm pack``."""
    name, _, version = package.rpartition("@")
    archive = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        if shutil.which("npm") is None:
            raise SystemExit(
                "npm is not installed; the emoji and their names come from its registry: install nodejs and npm"
            )
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
    with tarfile.open(archive) as tar:
        stream = tar.extractfile(f"package/{member}")
        if stream is None:
            raise FileNotFoundError(f"{package} has no file {member}")
        return stream.read()
