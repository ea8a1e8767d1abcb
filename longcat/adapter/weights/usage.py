"""The fields of a manifest that a file carries in its header, so that they outlive an export and an import.

The header's key ``lithograph`` holds a JSON object such as ``{"sampling": {"steps": 8, "guidance_scale": 1.0},
"trigger_words": ["ink"]}``. Other programs ignore it.
"""

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longcat.adapter.manifest import Sampling
from longcat.problem import Problem, show

KEY = "lithograph"
"""Key of the fields in a file's header."""
_Word = Annotated[str, Field(min_length=1, max_length=200)]


class AdapterUsage(BaseModel):
    """The way that an adapter is used: fields of ``longcat.adapter.manifest.Draft``, under their names there."""

    model_config = ConfigDict(frozen=True)  # further fields are those of a later version, and are skipped

    sampling: Sampling | None = None
    trigger_words: Annotated[tuple[_Word, ...], Field(max_length=100)] = ()


def usage_header(*, sampling: Sampling | None, trigger_words: tuple[str, ...]) -> dict[str, str]:
    """Return the header's entry; empty if an adapter is used as any other."""
    fields = {
        **({} if sampling is None else {"sampling": sampling.model_dump()}),
        **({"trigger_words": trigger_words} if trigger_words else {}),
    }
    return {KEY: json.dumps(fields, ensure_ascii=False)} if fields else {}


def usage_in(header: Mapping[str, str]) -> tuple[AdapterUsage, Problem | None]:
    """Return the fields in a file's header, and a warning if they cannot be read, with which none are set."""
    if KEY not in header:
        return AdapterUsage(), None
    try:
        return AdapterUsage.model_validate_json(header[KEY]), None
    except ValidationError:
        return AdapterUsage(), Problem(
            code="adapter_usage_unusable",
            template="its header gives {key} {value}, which are no sampling and trigger words; they are not set",
            remedy_template="export the adapter again",
            details={"key": KEY, "value": show(header[KEY])},
        )
