"""Requests without an engine."""

import math
from typing import Any

from service.wire.messages import GenerateCommand
from service.wire.schema import ResolvedRequest

_FIELDS = {
    "prompt": "一只猫", "negative_prompt": "", "width": 64, "height": 64, "steps": 4, "guidance_scale": 2.0, "seed": 1,
    "num_images": 1, "cfg_renorm": True, "rewrite_prompt": False, "output_format": "png",
}  # fmt: skip


def resolved(**fields: Any) -> ResolvedRequest:
    return ResolvedRequest(**_FIELDS | fields)


def command_of(name: str, **fields: Any) -> GenerateCommand:
    return GenerateCommand(id=name, request=resolved(**fields), submitted_at=0.0, deadline=math.inf)
